"""The command lines of the original research scripts, on this package's engine.

``train_student.py`` and ``train_teacher.py`` at the root of the repository call :func:`itrd.dropin.student.main`
and :func:`itrd.dropin.teacher.main`. Flags, folder names and files are the originals'; see docs/drop-in.md.
"""
