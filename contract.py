"""The one contract that every stage shares: names, dtypes, shapes, limits, tolerances and errors.

The native core takes its constants from here when it is built (core/build.py). Nothing else in the
project spells a tensor name as a string.

Errors::

    ToxicityError          one clear line for the user; the command exits with `exit_status`
    |-- BadInput           exit 2: a file, flag, tensor or comment that cannot be used as it is
    `-- GateFailed         exit 3: an artifact missed a stated bound; nothing was published

Dimension letters used in the project: B comments in a batch, L tokens of the longest comment
in it (the [CLS] token included), D = d_model, H attention heads, V vocabulary size.
"""

from __future__ import annotations


class ToxicityError(Exception):
    """Base of every error that the user is meant to read. Its text is one line."""

    exit_status = 1


class BadInput(ToxicityError):
    """Reads "<what> is <got>, expected <want>; <the command or flag that fixes it>"."""

    exit_status = 2


class GateFailed(ToxicityError):
    """Names the gate, the measured value, its bound and the worst comment, by its row."""

    exit_status = 3


# --- Text -> ids -------------------------------------------------------------------------
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]")
PAD_ID, UNK_ID, CLS_ID = range(3)
MAX_COMMENT_BYTES = 256 * 1024
"""Longest comment that the server reads, in bytes of UTF-8. Reddit allows 40,000 characters
(at most 160,000 bytes), which is the longest limit of a large comment platform that we know of."""
MAX_LEN = 4096
"""Most tokens of a comment that an encoder can be trained to read at once, [CLS] included."""
MAX_WINDOWS = 16
"""Most windows in which a comment beyond the encoder's length is read, when it is not just cut."""

# --- Labels and decisions ----------------------------------------------------------------
LABEL_THRESHOLD = 0.5
"""A comment is toxic when at least half of its annotators said so (Jigsaw's own rule)."""
DECISION_THRESHOLD = 0.5
"""Probability from which a comment counts as toxic in accuracy, precision, recall and F1, and in
a version whose artifact has no threshold of its own."""
THRESHOLD = "threshold"
"""In answers; as a parameter in the public model's config.pbtxt: probability from which the
version flags."""
FLAGGED = "flagged"
"""In answers: whether the probability is at least the threshold."""

# --- Encoder graph: ids in, logit out ----------------------------------------------------
INPUT_IDS = "input_ids"
"""int64 [B, L], right-padded with PAD_ID; column 0 is CLS_ID."""
ATTENTION_MASK = "attention_mask"
"""int64 [B, L], 1 where a token is, 0 where padding is; column 0 is always 1."""
ACCUMULATED_COUNTS = "accumulated_counts"
"""int32 [B], tokens of all comments up to and including each. The ragged form of the graph takes
it in place of ATTENTION_MASK, and its INPUT_IDS are int64 [T]: the comments one after the other."""
LOGIT = "logit"
"""float32 [B] from the graph, float32 [B, 1] from a served model."""
ATTRIBUTES = "attributes"
"""float32 [B, A], only of a model that has attributes beside toxicity: their logits from the
graph, their probabilities from a served model. The names of the columns stand under this one: as a
list in artifact.json, with commas between them in config.pbtxt and in an answer."""
ATTRIBUTE_NAME = "^[a-z][a-z0-9_]{0,39}$"
MAX_ATTRIBUTES = 32
"""Most attributes of a model."""
OPSET = 20
"""ONNX Runtime 1.32 fails at run time on most shapes of an opset-23 export of this model."""

# --- Public model: one comment as a string in, its score out ------------------------------
PUBLIC_MODEL = "toxicity"
BACKEND = "toxicity"
"""Triton looks for libtriton_<this>.so in the version's folder first."""
ENCODER_MODEL = "toxicity_encoder"
RAGGED_MODEL = "toxicity_encoder_ragged"
TEXT = "text"
"""BYTES [B, 1], UTF-8."""
PROBABILITY = "probability"
"""float32 [B, 1], the logistic function of the logit."""
MODEL_VERSION = "model_version"
"""BYTES [B, 1], the number of the version folder that answered."""
MAX_REQUEST_COMMENTS = 256
"""Most comments of one request, and of all requests that Triton hands over in one call."""
MAX_BATCH_SIZE = 64
"""Most comments, or windows of them, that the graph runs together."""
MAX_REQUEST_WINDOWS = MAX_BATCH_SIZE * MAX_WINDOWS
"""Most windows of one request's comments: they take the time of as many whole comments."""
MAX_BATCH_PAIRS = MAX_BATCH_SIZE * 256 * 256
"""Most pairs of tokens, summed over the comments that the graph runs together: attention's memory
grows with them. A single comment may have more."""
CALM_WAIT_S, OVERLOADED_WAIT_S = 0.25, 0.02
"""Longest wait for its turn of a request that was taken on, and of one while others are refused."""
CACHE_BYTES = "cache_bytes"
"""Parameter in the public model's config.pbtxt: most memory that the logits of repeated comments
take in a server; 0 turns that cache off."""
DEFAULT_CACHE_BYTES = 64 << 20
MAX_CACHE_BYTES = 1 << 40
MAX_BATCH = "max_batch"
"""Parameter there: most comments that the graph runs together, at most MAX_BATCH_SIZE."""
MAX_INSTANCES = 1024
"""Most sessions of a model in one server."""
MAX_WINDOW_MS = 1000.0
"""Longest time that a request may wait for batch-mates."""

# --- The door: what a request may be before the model sees it -----------------------------
MAX_REQUEST_BYTES = 1 << 20
"""Largest body of a request, and most bytes of comments in one. The longest comment fits, in the
usual JSON form of its language (each character as \\uXXXX takes at most three times its UTF-8)."""
MAX_HEADER_BYTES, MAX_HEADERS = 8192, 64
HEADER_TIMEOUT_S, BODY_TIMEOUT_S, IDLE_TIMEOUT_S = 5, 10, 60
"""Longest wait for the headers of a request, for its body, and for the next one of a connection."""
MAX_CONNECTIONS, MAX_ADDRESS_CONNECTIONS = 4096, 1024
"""Open connections of all clients, and of one address."""
LARGE_BODY_BYTES = 32 << 10
"""A larger body is held and read by a process of its own (serve/balancer.py)."""
MAX_ADDRESS_LARGE_BODIES, MAX_LARGE_BODIES = 32, 512
"""Most of them that are under way: of one address, and of all; more wait up to 5 s."""
OVERLOADED_REQUESTS = (16, 64)
"""Fewest and most requests that haproxy lets to a replica right after it refused one. Each further
refusal halves the bound."""
OVERLOADED_SAME_MS, OVERLOADED_STEP_MS, OVERLOADED_STEPS = 25, 125, 8
"""What is refused within so many milliseconds counts as one refusal. With every step of time
without one the bound doubles, and after so many of them there is none."""
OVERLOADED_S = OVERLOADED_STEP_MS * OVERLOADED_STEPS / 1000
"""All those steps."""
BYTES_A_ROW = 4096
"""So many bytes of text count as one more row of the encoder's batch when a request is admitted:
reading them takes about as long."""

# --- Histograms: what a server counts of itself, and a version's profile ------------------
DURATION_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds."""
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Comments that were scored together."""
SCORE_BINS = 20
"""Bins of the same width from 0 to 1."""
TOKEN_BOUNDS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
"""Tokens of a comment, [CLS] included."""
HISTOGRAMS = "histograms"
"""Parameter there, for measuring what they cost: "0" for none."""
ARRIVAL_HEADER = "toxicity-arrival"
"""Header by which haproxy tells a server when a request came, in microseconds of Unix time."""

CHECK_COMMENT = "Thank you, that was a kind and thoughtful answer."
"""A request of this comment alone, a space and the time in digits asks whether a server scores. It
is scored as any other, and is no traffic: the server's metrics leave it out."""

STARTS_VARIABLE = "TOXICITY_STARTS"
"""Environment of a server: how many times its supervisor has started it; a metric shows it."""

# --- Files of one published version ------------------------------------------------------
ONNX_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
ORT_FILE = "libonnxruntime.so"
"""ONNX Runtime's shared library, the one that the gates ran with."""
ARTIFACT_FILE = "artifact.json"
"""What the version is: precision, max_len, tolerances, files with their sha256, gates passed."""
THRESHOLDS_FILE = "thresholds.json"
"""Operating curve, thresholds for goals, the one that decides; older versions have none."""
SIGNATURE_FILE = "artifact.sig"
"""Ed25519 signature of ARTIFACT_FILE's bytes, 64 bytes, where the version was signed."""
PROFILE_FILE = "profile.json"
"""How the version scored its validation split (export/profile.py); older versions have none."""
SERVING_FILE = "serving.json"
"""In the public model's folder: which version serves and how, and the published ones' sha256."""
REQUIRE_SIGNATURE = "TOXICITY_REQUIRE_SIGNATURE"
"""Environment variable: file of a public key; without a signature by it no version verifies."""

# --- Gates -------------------------------------------------------------------------------
FP32_LOGIT_ATOL = 1e-4
"""Largest |logit(ONNX FP32) - logit(PyTorch)| over all parity cases."""
SERVING_LOGIT_ATOL = 1e-5
"""Largest |logit(serving graph FP32) - logit(traced graph)|, over the same cases."""
TORCHSCRIPT_LOGIT_ATOL = 1e-5
"""Largest |logit(TorchScript) - logit(PyTorch)|, over the same batches and lengths."""
FP32_INVARIANCE_ATOL = 1e-6
"""Largest change of an FP32 logit with the comments that share its batch."""
FP16_INVARIANCE_ATOL = 0.02
"""Largest change of an FP16 logit with the comments that share its batch. Not 0: on a GPU the
matmul library may pick another kernel for another number of rows, and another order of summing
moves a float16 by its last bit."""
INT8_INVARIANCE_ATOL = 0.0
"""INT8 logits are bit-identical whoever shares the batch."""
FP16_LOGIT_ATOL = 0.05
"""Largest |logit(FP16) - logit(PyTorch)| over the validation comments. No GPU has run it yet;
in NumPy's float16, 96 comments on a model of the default size: at most 0.006, mean 0.0015."""
FP16_LOGIT_MEAN_ATOL = 0.005
FP16_AUROC_ATOL = 0.0005
FP16_FLIPPED_SHARE = 0.005
"""FP16's bounds for what the three INT8 bounds of these names say."""
INT8_LOGIT_ATOL = 0.5
"""Largest |logit(INT8) - logit(PyTorch)| over the validation comments: a single outlier's limit."""
INT8_LOGIT_MEAN_ATOL = 0.05
"""Mean |logit(INT8) - logit(PyTorch)| over the validation comments."""
INT8_AUROC_ATOL = 0.002
"""Largest loss or gain of validation AUROC by quantization."""
ATTRIBUTE_AUROC_ATOL = 0.005
"""Largest loss or gain of an attribute's validation AUROC by a lower precision: wider than
toxicity's, since a rare attribute has few examples."""
ATTRIBUTE_EXAMPLES = 50
"""Validation comments of either kind from which on an attribute's AUROC is bounded at all."""
QAT_REFERENCE_SHARE = 0.5
"""Largest mean |logit(INT8) - logit(fake-quantized PyTorch)| of a QAT checkpoint, as a share of
the mean |logit(INT8) - logit(the same weights in float)|. See `train.methods.qat` for why it is not
0."""
QAT_AUROC_LOSS = 0.002
"""Largest loss of validation AUROC from the float checkpoint that QAT started from to INT8."""
INT8_FLIPPED_SHARE = 0.01
"""Largest share of validation comments whose decision at DECISION_THRESHOLD changes."""
PARITY_BATCHES = (1, 3, 8, 32)
PARITY_LENGTHS = (1, 2, 7, 64)
"""Lengths in tokens, [CLS] included; max_len is always added."""
PARITY_PAIRS = 32 * 1024 * 1024
"""Most pairs of tokens, padding included, that a gate gives the traced graph at once: it holds a
float32 for each of them and each head. Batches of long comments are that much smaller."""

# --- Addresses of a local server ---------------------------------------------------------
HOST = "127.0.0.1"
HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002
