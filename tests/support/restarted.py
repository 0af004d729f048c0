"""A script that fails on its last rank, in a folder whose files look like progress and are none."""

SCRIPT = """
import os, pathlib, sys
import sorix_dist as sx
sx.init(timeout=3)
attempt, folder = int(os.environ["SORIX_DIST_ATTEMPT"]), pathlib.Path("saved")
if sx.rank() == 0:
    (folder / "log.txt").write_text(str(attempt))
    os.utime(folder / "log.txt", (2e9 - attempt,) * 2)
    (folder / "loop").is_symlink() or (folder / "loop").symlink_to("loop")
    (folder / f"00000{attempt}-step-{attempt}.safetensors.0badf00{attempt}.tmp").write_text("cut")
if sys.argv[1] == "saves":
    sx.Checkpointer(folder).save(attempt, x=[attempt])
    attempt == int(sys.argv[2]) and sys.exit()
if sx.rank() == sx.size() - 1:
    sys.exit(3)
sx.barrier()
"""
"""Arguments: "saves", and the attempt that succeeds; or "does-not". The newest of its files by time is no checkpoint,
and unfinished ones are no progress."""
