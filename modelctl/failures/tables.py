"""What exceptions of SDKs mean: the tables that `classify` reads. To add an SDK, add lines.

In each table a name is ``"Class"``, which matches a class of this name in every package, or
``"package.Class"``, which matches only classes of that top-level package. The base classes of an
exception are looked up too, the nearest first. None means that the failure says nothing about the model:
it is the caller's own doing, and nothing is recorded.
"""

from __future__ import annotations

import errno

from modelctl.model import FailureType

TIMEOUT = FailureType.TIMEOUT
NETWORK = FailureType.NETWORK_ERROR
PARSE = FailureType.PARSE_ERROR
CLIENT = FailureType.CLIENT_ERROR
SERVER = FailureType.SERVER_ERROR
RATE = FailureType.RATE_LIMIT
UNKNOWN = FailureType.UNKNOWN

# ── Classes ──

CLASSES: dict[str, FailureType | None] = {
    # The program stops, or the caller cancelled the call.
    "KeyboardInterrupt": None,
    "SystemExit": None,
    "GeneratorExit": None,
    "CancelledError": None,  # asyncio, concurrent.futures
    "trio.Cancelled": None,
    "ClientClosedRequestError": None,
    # Time limits. A name that ends in Timeout, TimeoutError or TimeoutException needs no line.
    "TimeoutExpired": TIMEOUT,  # subprocess
    "TooSlowError": TIMEOUT,  # trio
    "SoftTimeLimitExceeded": TIMEOUT,  # celery
    "TimeLimitExceeded": TIMEOUT,
    "DeadlineExceeded": TIMEOUT,  # google.api_core
    "DeadlineExceededError": TIMEOUT,
    # The standard library.
    "ConnectionError": NETWORK,  # and the one of requests
    "socket.gaierror": NETWORK,
    "socket.herror": NETWORK,
    "ssl.SSLError": NETWORK,
    "http.HTTPException": NETWORK,  # http.client: the answer was cut off, or is no HTTP
    "http.InvalidURL": None,
    "asyncio.IncompleteReadError": NETWORK,
    "zlib.error": PARSE,
    "http.ImproperConnectionState": None,
    "json.JSONDecodeError": PARSE,
    "JSONDecodeError": PARSE,  # requests, simplejson, orjson
    # httpx, httpcore, httpx2, httpcore2, h11.
    "NetworkError": NETWORK,
    "ConnectError": NETWORK,
    "ReadError": NETWORK,
    "WriteError": NETWORK,
    "CloseError": NETWORK,
    "ProxyError": NETWORK,
    "RemoteProtocolError": NETWORK,
    "DecodingError": PARSE,  # the answer says gzip, and is not
    "TooManyRedirects": UNKNOWN,
    "LocalProtocolError": None,  # nothing was sent: a header or URL that is no header or URL
    "UnsupportedProtocol": None,
    "InvalidURL": None,
    "httpx.StreamError": None,  # the application reads a stream that it has closed
    "httpx2.StreamError": None,
    "anyio.BrokenResourceError": NETWORK,
    "anyio.EndOfStream": NETWORK,
    # requests.
    "requests.SSLError": NETWORK,
    "ChunkedEncodingError": NETWORK,
    "ContentDecodingError": PARSE,
    "requests.InvalidHeader": None,
    "requests.MissingSchema": None,
    "requests.InvalidSchema": None,
    "requests.URLRequired": None,
    # urllib and urllib3.
    "urllib.URLError": NETWORK,
    "urllib.ContentTooShortError": NETWORK,
    "NewConnectionError": NETWORK,  # derives from a timeout
    "urllib3.SSLError": NETWORK,
    "urllib3.ProtocolError": NETWORK,
    "urllib3.DecodeError": PARSE,
    "urllib3.LocationValueError": None,
    "urllib3.HTTPError": NETWORK,
    # aiohttp.
    "aiohttp.ContentTypeError": PARSE,
    "aiohttp.InvalidURL": None,
    "aiohttp.NonHttpUrlClientError": None,
    "aiohttp.ClientConnectionError": NETWORK,
    "aiohttp.ClientPayloadError": NETWORK,
    "aiohttp.ContentEncodingError": PARSE,
    "aiohttp.HttpProcessingError": NETWORK,
    "aiohttp.HTTPException": None,  # of its web server
    # websockets: the realtime APIs.
    "websockets.ConnectionClosed": NETWORK,
    "WebSocketConnectionClosedError": NETWORK,
    "WebSocketQueueFullError": None,
    # botocore.
    "botocore.ConnectionError": NETWORK,
    "botocore.SSLError": NETWORK,
    "botocore.HTTPClientError": NETWORK,
    "botocore.ResponseParserError": PARSE,
    "botocore.ChecksumMismatch": NETWORK,
    "botocore.ParamValidationError": None,
    "botocore.NoCredentialsError": None,
    "botocore.PartialCredentialsError": None,
    "botocore.CredentialRetrievalError": None,
    "botocore.NoRegionError": None,
    "botocore.ProfileNotFound": None,
    # Readers of JSON and of schemas.
    "pydantic.ValidationError": PARSE,
    "pydantic_core.ValidationError": PARSE,
    "msgspec.DecodeError": PARSE,
    "jsonschema.ValidationError": PARSE,
    "marshmallow.ValidationError": PARSE,
    # openai, anthropic, and the many SDKs that are generated in the same way.
    "APIResponseValidationError": PARSE,
    "LengthFinishReasonError": None,  # the caller's max_tokens
    "ContentFilterFinishReasonError": None,
    "InvalidWebhookSignatureError": None,
    "CredentialsError": None,
    # mistralai, cohere, google-genai.
    "ResponseValidationError": PARSE,
    "NoResponseError": NETWORK,
    "cohere.ParsingError": PARSE,
    "google.UnknownApiResponseError": PARSE,
    "google.FunctionInvocationError": None,  # a function of the application
    "google.UnsupportedFunctionError": None,
    "google.TransportError": NETWORK,  # google.auth
    "google.RefreshError": CLIENT,
    "google.DefaultCredentialsError": None,
    "google.RetryError": TIMEOUT,  # google.api_core: it has tried for long enough
    # grpc, azure.
    "grpc.FutureCancelledError": None,
    "azure.ServiceRequestError": NETWORK,
    "azure.ServiceResponseError": NETWORK,
    "azure.IncompleteReadError": NETWORK,
    "azure.DecodeError": PARSE,
    # Libraries that want an answer in a certain form.
    "OutputParserException": PARSE,  # langchain
    "UnexpectedModelBehavior": PARSE,  # pydantic_ai
    # litellm.
    "ContextWindowExceededError": None,
    "ContentPolicyViolationError": None,
    "litellm.RejectedRequestError": None,
    "litellm.UnsupportedParamsError": None,
    "litellm.BudgetExceededError": None,
    "litellm.GuardrailRaisedException": None,
    "litellm.BlockedPiiEntityError": None,
    "litellm.ImageFetchError": None,
}
# Names of classes that end like this are timeouts.
TIMEOUT_NAMES = ("Timeout", "TimeoutError", "TimeoutException")

# Classes that wrap anything: their meaning counts only if the chain of causes says nothing better.
WRAPPERS: dict[str, FailureType | None] = {
    "APIConnectionError": NETWORK,
    "APIError": SERVER,  # an error inside of a stream
    "urllib3.MaxRetryError": NETWORK,
    "httpx.HTTPError": NETWORK,
    "httpx2.HTTPError": NETWORK,
    "aiohttp.ClientError": NETWORK,
    "requests.RequestException": NETWORK,
    "botocore.BotoCoreError": UNKNOWN,
    "botocore.ClientError": UNKNOWN,
    "mistralai.MistralError": UNKNOWN,
    "cohere.ApiError": UNKNOWN,
    "grpc.RpcError": UNKNOWN,
    "openai.OpenAIError": None,  # no key, or parameters that exclude each other: nothing was sent
    "anthropic.AnthropicError": None,
}

# Attributes that hold the exception which was wrapped, where neither __cause__ nor __context__ does.
LINKS = ("original_exception", "reason")

# Packages (or classes) whose exceptions have a status that no server sent. LiteLLM gives 500 to a
# refused connection, and aiohttp 400 to an answer that was cut off. An HTTPStatusError has a real one.
MADE_UP_STATUSES = {"litellm", "aiohttp.HttpProcessingError"}

# Packages that have nothing to do with a model: the application's databases, caches and web server.
ELSEWHERE = {
    *("modelctl", "redis", "valkey", "pymemcache", "memcache", "kombu", "pika", "aio_pika"),
    *("sqlalchemy", "psycopg", "psycopg2", "psycopg_pool", "asyncpg", "sqlite3", "aiosqlite"),
    *("pymysql", "MySQLdb", "mysql", "pymongo", "motor", "cassandra", "elasticsearch"),
    *(
        "django",
        "flask",
        "werkzeug",
        "starlette",
        "fastapi",
        "uvicorn",
        "sanic",
        "quart",
        "litestar",
    ),
}

# ── Statuses and error codes ──

# Statuses that mean something else than in `health.failure_type_of_status`.
STATUSES: dict[int, FailureType | None] = {
    # The request is too large: five prompts that are too long must not switch a healthy model off.
    413: None,
    414: None,
    431: None,
    # Cloudflare (522, 524) and other proxies (598) gave up waiting for the provider.
    522: TIMEOUT,
    524: TIMEOUT,
    598: TIMEOUT,
}

# Error codes that say more than the status beside them.
CODES: dict[str, FailureType | None] = {
    # The prompt is too long.
    "context_length_exceeded": None,
    "context_window_exceeded": None,
    "model_max_prompt_tokens_exceeded": None,
    "string_above_max_length": None,
    "request_too_large": None,
    # The provider refuses this prompt.
    "content_policy_violation": None,
    "content_filter": None,
    "content_filtered": None,
    "responsibleaipolicyviolation": None,
    "moderation_blocked": None,
    "cyber_policy": None,
    "image_content_policy_violation": None,
    # The bill: it does not heal by itself.
    "insufficient_quota": CLIENT,
    "billing_hard_limit_reached": CLIENT,
    "billing_not_active": CLIENT,
    "billing_error": CLIENT,
    "insufficient_balance": CLIENT,
    "servicequotaexceededexception": CLIENT,
    # Amazon Bedrock: status 424 and 429, but the model has failed.
    "modelerrorexception": SERVER,
    "modelstreamerrorexception": SERVER,
    "modelnotreadyexception": SERVER,
}

# Error codes that count only where no status was sent: in the middle of a stream, or in gRPC.
CODES_WITHOUT_STATUS: dict[str, FailureType | None] = {
    # anthropic, openai.
    "overloaded_error": SERVER,
    "api_error": SERVER,
    "server_error": SERVER,
    "internal_error": SERVER,
    "internal_server_error": SERVER,
    "service_unavailable": SERVER,
    "server_overloaded": SERVER,
    "engine_overloaded": SERVER,
    "timeout_error": TIMEOUT,
    "rate_limit_error": RATE,
    "rate_limit_exceeded": RATE,
    "tokens": RATE,
    "requests": RATE,
    "invalid_request_error": CLIENT,
    "authentication_error": CLIENT,
    "permission_error": CLIENT,
    "not_found_error": CLIENT,
    # google-genai and gRPC.
    "cancelled": None,
    "deadline_exceeded": TIMEOUT,
    "resource_exhausted": RATE,
    "unavailable": SERVER,
    "internal": SERVER,
    "unknown": SERVER,
    "data_loss": SERVER,
    "unimplemented": SERVER,
    "invalid_argument": CLIENT,
    "failed_precondition": CLIENT,
    "out_of_range": CLIENT,
    "not_found": CLIENT,
    "already_exists": CLIENT,
    "aborted": CLIENT,
    "permission_denied": CLIENT,
    "unauthenticated": CLIENT,
    # botocore, also inside of its event streams.
    "throttlingexception": RATE,
    "toomanyrequestsexception": RATE,
    "modeltimeoutexception": TIMEOUT,
    "internalserverexception": SERVER,
    "serviceunavailableexception": SERVER,
    "validationexception": CLIENT,
    "accessdeniedexception": CLIENT,
    "expiredtokenexception": CLIENT,
    "unrecognizedclientexception": CLIENT,
    "invalidsignatureexception": CLIENT,
    "resourcenotfoundexception": CLIENT,
}

# ── Texts, for providers that have no code ──

# In the answer to a request that was refused (4xx): the prompt is too long, or not wanted.
REFUSALS = (
    "context_length_exceeded",
    "content_policy_violation",
    "maximum context length",
    "maximum context limit",
    "model's context length",
    "model's context window",
    "context window of",
    "exceed context limit",
    "exceeds the context window",
    "exceeds the available context size",
    "exceeds the maximum number of tokens allowed",  # Gemini
    "input tokens exceed",
    "maximum input length is",
    "`inputs` tokens + `max_new_tokens` must be",  # Text Generation Inference
    "prompt is too long",  # Anthropic
    "input is too long",  # Bedrock
    "too many tokens",  # Cohere
    "too large for model with",  # Mistral
    "string too long",
    "content filtering policy",  # Anthropic
    "content management policy",  # Azure
    "content policy",
    "safety system",
    "violating our usage policy",
    "responsibleaipolicyviolation",
)
# In the same answers: the bill.
BILLS = ("insufficient_quota", "credit balance is too low", "billing hard limit")
# gRPC has one code, UNAVAILABLE, for a server that is down and for one that cannot be reached.
UNREACHABLE = (
    "connect",
    "dns resolution",
    "socket closed",
    "reset by peer",
    "handshake",
    "recvmsg",
)
# LiteLLM, where it has no cause that says so: the answer was not usable.
UNUSABLE = (
    "empty or invalid response from llm endpoint",
    "response with no 'choices'",
    "unable to get json response",
    "error converting to valid response",
)
# urllib3, with its own retries.
TOO_MANY = r"too many (\d{3}) error responses"

# OSError: what the operating system says of the network.
ERRNOS = {
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENETRESET),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN),
    errno.EADDRNOTAVAIL,
}

# ── Reading an answer ──

# Packages whose functions read answers, and whose objects are answers.
SDKS = {
    *(
        "openai",
        "anthropic",
        "google",
        "mistralai",
        "cohere",
        "litellm",
        "botocore",
        "boto3",
        "grpc",
    ),
    *("httpx", "httpx2", "httpcore", "httpcore2", "requests", "aiohttp", "urllib3", "urllib"),
    *("groq", "together", "ollama", "azure", "replicate", "huggingface_hub", "fireworks"),
    *("cerebras", "xai_sdk", "ai21", "voyageai", "vertexai"),
}
JSON_READERS = {"json", "simplejson", "orjson", "ujson", "msgspec", "jiter"}
SCHEMA_READERS = {"pydantic", "pydantic_core"}
# Functions of SDKs in which an answer is being read, or a request is being made.
READING = (
    r"(?:process|transform|parse|convert|unmarshal|from|construct)\w*_response|__stream__|chunk_parser"
    r"|construct_type"
)
MAKING = (
    r"transform_request|validate_environment|get_optional_params|map_openai_params|prompt_factory"
)
# Attributes that only answers have; and attributes of answers that a page of HTML (text) does not have.
ANSWER_ATTRIBUTES = {"choices", "candidates", "finish_reason", "stop_reason", "output_text"}
HTML_LACKS = ANSWER_ATTRIBUTES | {"content", "message", "output", "data", "usage"}
# Why a good answer has no text (finish_reason, stop_reason, stopReason).
REASONS_FOR_NO_TEXT = {
    *(
        "content_filter",
        "refusal",
        "safety",
        "recitation",
        "prohibited_content",
        "blocklist",
        "spii",
    ),
    *("guardrail_intervened", "content_filtered"),
    *("length", "max_tokens", "model_context_window_exceeded"),
    *("tool_calls", "function_call", "tool_use", "pause_turn"),
}
