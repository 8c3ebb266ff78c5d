#!/usr/bin/env python
"""Cortex's command line: `python manage.py help`."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cortex_site.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import DatabaseError

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"The settings cannot be used: {error}")
    except DatabaseError as error:
        # Not reachable, damaged, or without our tables: the operator's to mend.
        sys.exit(f"The database cannot be used: {error}. If it is new, run `manage.py migrate`.")


if __name__ == "__main__":
    main()
