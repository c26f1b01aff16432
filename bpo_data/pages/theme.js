// Light and dark: what the system prefers, until the button says otherwise (for this visit).
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
}

function startTheme(changed) {
  const button = document.getElementById("theme");
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
    changed();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  prefersDark.addEventListener("change", show);
  show();
}

// On paper everything that is folded away is open; afterwards it is as it was.
function startPrinting(changed) {
  const media = matchMedia("print");
  let opened = [];
  const begin = () => {
    if (opened.length) return;
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
    changed();
  };
  const end = () => {
    for (const details of opened) details.open = false;
    opened = [];
    changed();
  };
  media.addEventListener("change", () => (media.matches ? begin() : end()));
  addEventListener("beforeprint", begin);
  addEventListener("afterprint", end);
}
