"""Low-rank projected gradients of single responses: numbers in, numbers out.

Nothing here knows of files, settings or the pipeline. ``engine`` measures (it loads torch and
transformers), ``pairs`` combines what was measured (numpy only), so import the module you need.
"""
