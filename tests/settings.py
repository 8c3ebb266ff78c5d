"""Cortex's own settings, with a data folder that lasts as long as the test run."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_folder = tempfile.mkdtemp(prefix="cortex-tests-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
os.environ["CORTEX_DATA"] = _folder
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
for _name in ("CORTEX_DATABASE_URL", "CORTEX_REDIS_URL", "PROMETHEUS_MULTIPROC_DIR"):
    os.environ.pop(_name, None)

from cortex_site.settings import *  # noqa: E402, F403
from cortex_site.settings import DATABASES  # noqa: E402

# A file, not memory: threads and servers in tests use connections of their own.
DATABASES["default"]["TEST"] = {"NAME": Path(_folder) / "test.sqlite3"}

# Pages are tested, not files: each test client would search all apps for them.
WHITENOISE_USE_FINDERS = False
# A password in a test need not withstand anybody.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
