from cortex_site import checks


def ids(messages):
    return [message.id for message in messages]


def test_listening_on_the_network_needs_a_word_of_the_operator(settings):
    settings.CORTEX_HOST = "0.0.0.0"
    settings.CORTEX_ALLOW_ANONYMOUS = False
    assert ids(checks.check_not_open()) == ["cortex.E001"]
    settings.CORTEX_ALLOW_ANONYMOUS = True
    assert ids(checks.check_not_open()) == []


def test_loopback_needs_none(settings):
    settings.CORTEX_ALLOW_ANONYMOUS = False
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        settings.CORTEX_HOST = host
        assert ids(checks.check_not_open()) == []


def test_two_equal_ports_are_refused(settings):
    settings.CORTEX_PORT = settings.CORTEX_METRICS_PORT = 31313
    assert ids(checks.check_ports_differ()) == ["cortex.E002"]


def test_an_admin_that_would_answer_nobody_is_refused(settings):
    settings.ALLOWED_HOSTS = []
    assert ids(checks.check_hosts_named()) == ["cortex.E003"]
    settings.CORTEX_SERVE_ROLE = "gateway"
    assert ids(checks.check_hosts_named()) == []
