from __future__ import annotations

import pytest
from kombu import Connection

from runner import app as applications
from runner.errors import SettingsError


def test_no_setting_that_loses_jobs_is_on() -> None:
    conf = applications.make_app("redis://127.0.0.1:1/0").conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert not conf.worker_cancel_long_running_tasks_on_connection_loss
    assert conf.worker_prefetch_multiplier == 1
    assert conf.broker_transport_options["socket_timeout"]
    assert conf.accept_content == ["json"]
    assert conf.result_backend is None


def test_the_celery_command_finds_the_application_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="RUNNER_URL is not set"):
        _ = applications.app
    monkeypatch.setenv("RUNNER_URL", "redis://127.0.0.1:1/0")
    assert applications.app.conf.broker_url == "redis://127.0.0.1:1/0"


def test_the_lists_behind_a_queue_are_those_that_kombu_uses(url: str) -> None:
    with Connection(url, transport_options=applications.TRANSPORT_OPTIONS) as connection:
        channel = connection.channel()
        keys = {channel._q_for_pri("backtest", priority) for priority in applications.PRIORITIES.values()}
    assert keys == set(applications.queue_keys("backtest"))


def test_the_name_that_is_sent_is_the_name_of_the_task() -> None:
    from tasks import backtest, fetch

    named = {"backtest": backtest.run_chunk.name, "fetch": fetch.fetch_chunk.name}
    assert named == applications.TASKS


def test_a_message_that_cannot_be_sent_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with applications.make_app("redis://127.0.0.1:1/0") as app:
        applications.publish_chunk(app, "s" * 16, "sweep", 7, queue="backtest", priority="normal")
    assert "sweep: no message for chunk 7" in caplog.text
