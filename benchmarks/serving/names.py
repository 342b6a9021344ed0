"""Names of rows and tables that more than one file speaks of; nothing is imported here, so that pages can be rendered anywhere."""

MULLE = "mulle serve"
FULL = "mulle serve, everything on"
DRAFT = "mulle serve, draft decoding"
UNIQUE = "mulle serve, heads that never repeat"
TWO = "mulle serve, two workers"
STOPS = "mulle serve, stops reading"
OWN = (FULL, MULLE, UNIQUE, TWO, DRAFT, STOPS)

TUTORIAL, TUTORIAL_ONE, TUNED = "tutorial FastAPI app", "the same, intra_op = 1", "FastAPI, raw body and orjson"
BENTO, LIT, MLSERVER, KSERVE = "BentoML", "LitServe", "MLServer", "KServe (Python server)"
RAY, MLFLOW, TRITON = "Ray Serve", "MLflow", "Triton (nvidia-pytriton)"
SERVERS = (BENTO, LIT, MLSERVER, KSERVE, RAY, MLFLOW, TRITON)
PROMISED = (TUTORIAL, TUTORIAL_ONE, *SERVERS)
"""The peers promises are about; the strengthened FastAPI app is shown beside them."""

PEERS = (TUTORIAL, TUTORIAL_ONE, TUNED, *SERVERS)

ECHO, GRPC_BARE = "bare HTTP echo", "bare grpc.aio handler"
RUN_ONE, RUN_32 = "bare session.run, 1 row, one core", "bare session.run, 32 rows, one core"
RUN_CORE, RUN_ALL = "bare session.run, one core", "bare session.run, all cores"
PIXELS_ALL = "bare decode + resize + session.run, all cores"
BARE = (ECHO, GRPC_BARE, RUN_ONE, RUN_32, RUN_CORE, RUN_ALL, PIXELS_ALL)
