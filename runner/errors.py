"""Every error this project raises on purpose. Each message names what was given, what was expected and the cure.

RunnerError
├── InputError              what was passed in cannot be run  (a ValueError)
│   ├── BarsError           prices: empty, unsorted, NaN, high below low, columns missing
│   ├── SpaceError          parameters: an empty grid, too many points, a bad axis
│   ├── StrategyError       a strategy that cannot be shipped, found or called, or that returned no position
│   └── SettingsError       an option or RUNNER_* variable that is out of range
├── RunTimeoutError         one run took longer than its limit  (a TimeoutError)
├── BrokerError             the Redis or Valkey server
│   ├── BrokerUnreachable   nobody answers there
│   ├── BrokerRefused       wrong password, or a server whose settings would lose jobs
│   └── SecretMismatch      the server belongs to a deployment with another RUNNER_SECRET
├── SignatureError          a message or code without a valid signature
├── VersionMismatch         the two sides run different Python minor versions
├── SweepError              one sweep
│   ├── SweepNotFound       no such sweep, or its results have expired
│   ├── SweepExists         the name is taken
│   ├── SweepTimeout        not done within result(timeout=)  (a TimeoutError); it goes on
│   └── RunFailed           a failed run was asked for its numbers
├── FetchError              data that could not be had from a provider
│   ├── SymbolUnknown       the provider does not know the symbol
│   ├── NoData              the provider has nothing in that range
│   ├── SourceRefused       key missing, expired or banned; a redirect that must not be followed
│   ├── SourceUnavailable   no good answer in time: 5xx, 429, time-outs, dropped connections, an open breaker
│   └── BadAnswer           not what the provider documents: HTML, wrong JSON, wrong columns, too large
├── ExecutorError           a function or process of the local executor failed
└── StackError              a local server, worker or Flower did not start or stop
"""


class RunnerError(Exception):
    """Anything this project raises on purpose."""


class InputError(RunnerError, ValueError):
    """What was passed in cannot be run."""


class BarsError(InputError):
    """Prices that cannot be backtested."""


class SpaceError(InputError):
    """Parameters that make no space to search."""


class StrategyError(InputError):
    """A strategy that cannot be shipped, found or called, or that returned no position."""


class SettingsError(InputError):
    """An option or RUNNER_* variable that is out of range."""


class RunTimeoutError(RunnerError, TimeoutError):
    """One run took longer than its limit."""


class BrokerError(RunnerError):
    """Something about the Redis or Valkey server."""


class BrokerUnreachable(BrokerError):
    """Nobody answers at the server's address."""


class BrokerRefused(BrokerError):
    """The server refuses us, or we refuse it because its settings would lose jobs."""


class SecretMismatch(BrokerError):
    """The server belongs to a deployment with another RUNNER_SECRET."""


class SignatureError(RunnerError):
    """A message or code without a valid signature."""


class VersionMismatch(RunnerError):
    """The two sides run different Python minor versions."""


class SweepError(RunnerError):
    """Something about one sweep."""


class SweepNotFound(SweepError):
    """No sweep of that name, or its results have expired."""


class SweepExists(SweepError):
    """The name is taken by another sweep."""


class SweepTimeout(SweepError, TimeoutError):
    """The sweep was not done in time; it goes on."""


class RunFailed(SweepError):
    """A failed run was asked for its numbers."""


class FetchError(RunnerError):
    """Data that could not be had from a provider; the message names provider, symbol and range."""


class SymbolUnknown(FetchError):
    """The provider does not know the symbol."""


class NoData(FetchError):
    """The provider has nothing in that range."""


class SourceRefused(FetchError):
    """The provider will not serve us: key missing, expired or banned; or it led to a place we must not go."""


class SourceUnavailable(FetchError):
    """No good answer in time: it may work later."""


class BadAnswer(FetchError):
    """An answer that is not what the provider documents; it was not kept."""


class ExecutorError(RunnerError):
    """A function or process of the local executor failed."""


class StackError(RunnerError):
    """A local server, worker or Flower did not start or stop."""
