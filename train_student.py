"""Distil a student: command lines of ITRD's and RepDistiller's train_student.py run as they are."""

import sys

from itrd.dropin.student import main

if __name__ == "__main__":
    sys.exit(main())
