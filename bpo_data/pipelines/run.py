"""The command line: ``python -m bpo_data.pipelines.run stage=all recipe=NAME``."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from bpo_data import __version__, faults, hub, stopping
from bpo_data.errors import UserError, harmless
from bpo_data.pipelines import config as settings
from bpo_data.pipelines.clean import clean
from bpo_data.pipelines.command import Command
from bpo_data.pipelines.manual import describe
from bpo_data.pipelines.planning import plan, status
from bpo_data.pipelines.running import Run
from bpo_data.pipelines.saying import Voice, say
from bpo_data.runtime import Runtime, prepare
from bpo_data.shelf import Shelf
from bpo_data.stages import STAGES

PROGRAM = "python -m bpo_data.pipelines.run"
USAGE = """\
{program} stage=STAGES recipe=NAME section.key=value ...

  stage    all, or names with commas; each is brought up to date with what it needs.
           {stages}
           status shows how each stands; clean removes what no run used for long, after asking.
  recipe   {recipes},
           or a path to a .yaml file; without one, {default}.
  plan     plan=true shows what would run and why, its time and cost, and does nothing.
  rounds   rounds=2 samples, judges, selects and trains twice, the second time with what the
           first trained; short for rounds.count.
  format   format=json answers with one JSON document on stdout, for scripts.

  --help SECTION lists a section's settings: {sections}, ablation.
  --version"""


def main(arguments: Sequence[str]) -> int:
    """Run a command line; the exit status: 0 done, 2 something to put right, 130 stopped."""
    set_up_logging()
    voice = Voice(settings.format_word(arguments))
    with stopping.listening():
        try:
            return ended(arguments, voice)
        except BaseException:  # rises whole; scripts learn that there is nothing to read
            voice.end("failed")
            raise


def ended(arguments: Sequence[str], voice: Voice) -> int:
    """Answer, and say how it ended; the exit status."""
    try:
        answer(arguments, voice)
        voice.end("done")
        return 0
    except UserError as error:
        return put_right(voice, str(error))
    except KeyboardInterrupt:
        stopping.deafen()
        where = f" in {stopping.doing}" if stopping.doing else ""
        stopping.tell(f"stopped{where}; the same command goes on from here.")
        voice.note(stage=stopping.doing)
        voice.end("stopped")
        return 130
    except MemoryError as error:
        return put_right(voice, str(faults.of_memory(error, stopping.doing or "start")))
    except OSError as error:
        if error.errno is None or error.errno not in faults.OF_A_DISK:
            raise
        return put_right(
            voice,
            f"{os.strerror(error.errno)}: {error.filename or 'the runs folder'}. Make room or use "
            f"another runtime.folder; the same command goes on from here.",
        )


def console() -> int:
    """The command ``bpo-data``."""
    sys.excepthook = show_bug
    return main(sys.argv[1:])


def show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback as Python prints it, but for what would steer a terminal."""
    sys.stderr.write(harmless("".join(traceback.format_exception(kind, error, trace))))


def answer(arguments: Sequence[str], voice: Voice) -> None:
    """Do what a command line asks for. Raises UserError, and KeyboardInterrupt when stopped."""
    if "--version" in arguments:
        voice.line(f"bpo_data {__version__}")
        voice.note(version=__version__)
        return
    if "--help" in arguments or "-h" in arguments:
        sections = [word for word in arguments if not word.startswith("-") and "=" not in word]
        text = help_text(sections, settings.recipe_word(arguments)) if sections else overview()
        voice.line(text)
        voice.note(help=text)
        return
    if settings.is_ablation(arguments):
        compare(arguments, voice)
        return
    asked = settings.read(arguments)
    prepare(asked.config.runtime)
    words = f"{PROGRAM} {shlex.join(arguments)}".strip()
    voice.note(command=words, recipe=asked.recipe)
    if asked.stages == ("clean",):
        clean(Shelf(asked.config.runtime.folder), asked.config.clean, voice, plan=asked.plan)
    elif asked.stages == ("status",):
        status(Command(dataclasses.replace(asked, stages=tuple(STAGES))), voice)
    elif asked.plan:
        plan(Command(asked), voice)
    else:
        if asked.config.export.push_to_hub:
            hub.ready()  # before hours of work
        run = Run(asked, voice, words)
        run.go()
        run.hand_over()


def put_right(voice: Voice, text: str) -> int:
    """Say what is wrong, a line each; the exit status."""
    for line in text.splitlines():
        print(f"bpo_data: {harmless(line)}", file=sys.stderr)
    voice.note(errors=text.splitlines())
    voice.end("error")
    return 2


def compare(arguments: Sequence[str], voice: Voice) -> None:
    """Run the arms of an ablation; print its table and write its page."""
    from bpo_data.pipelines import ablation, ablation_page

    recipe = settings.recipe_word(arguments)
    asked, shared = ablation.read(recipe, arguments)
    stopping.doing = "the ablation"
    total = len(asked.all_worlds()) * len(asked.arms) * len(asked.all_seeds())
    outcomes = []
    for one in ablation.run(asked, shared):
        outcomes.append(one)
        what = f"{one.world}, {one.arm}, seed {one.seed}: {one.points:.3f} points"
        say("ablation", f"{len(outcomes)} of {total}: {what}")
    for line in ablation_page.lines(asked, outcomes):
        voice.line(line)
    folder = Path(shared.get("runtime.folder", Runtime().folder)) / "ablation" / Path(recipe).stem
    words = f"{PROGRAM} {shlex.join(arguments)}"
    page = ablation_page.write(folder, asked, shared, outcomes, words)
    voice.line(f"page {page}   rows {folder / 'outcomes.parquet'}")
    voice.note(command=words, page=page, rows=folder / "outcomes.parquet", outcomes=outcomes)


def help_text(sections: list[str], recipe: str) -> str:
    """The settings of sections, with the values that a recipe gives them."""
    values = settings.read_recipe(recipe)
    return "\n\n".join(describe(section, recipe, values) for section in sections)


def overview() -> str:
    return USAGE.format(
        program=PROGRAM,
        stages=", ".join(STAGES),
        recipes=", ".join(settings.recipes()),
        default=settings.DEFAULT_RECIPE,
        sections=", ".join(field.name for field in dataclasses.fields(settings.Config)),
    )


class Harmless(logging.Formatter):
    """Log lines of whatever origin as a terminal shows them."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def set_up_logging() -> None:
    """Our lines on stderr as they are, other libraries' only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Harmless("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    models = ("httpx", "httpx2", "openai", "datasets", "transformers", "faiss", "trl")
    for noisy in (*models, "botocore", "aiobotocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it warns of resuming as such


if __name__ == "__main__":
    sys.exit(console())
