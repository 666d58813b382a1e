#!/bin/sh
# The smoke track: every method on the whole of CIFAR-100, on a schedule short enough for two CPU cores. Its
# accuracies say that things work, not how methods compare after 240 epochs. What is already there is continued or
# skipped. Arguments are those of `itrd bench run`, for example --budget 3600.
exec "${ITRD:-itrd}" bench run --track smoke "$@"
