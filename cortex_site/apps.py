from django.apps import AppConfig


class CortexSiteConfig(AppConfig):
    name = "cortex_site"
    verbose_name = "Cortex"

    def ready(self) -> None:
        from cortex_site import checks  # noqa: F401 - registers the system checks
