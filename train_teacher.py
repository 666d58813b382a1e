"""Train a teacher: command lines of RepDistiller's train_teacher.py run as they are."""

import sys

from itrd.dropin.teacher import main

if __name__ == "__main__":
    sys.exit(main())
