"""Print how many milliseconds `import vggnet` takes beyond NumPy's own import: the least of several fresh processes."""

import subprocess
import sys

PROGRAM = "import time; import numpy; t = time.perf_counter(); import vggnet; print(time.perf_counter() - t)"


def main() -> None:
    seconds = [
        float(
            subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
        )
        for _ in range(10)
    ]
    print(f"import vggnet: {min(seconds) * 1000:.1f} ms beyond NumPy (least of {len(seconds)})")


if __name__ == "__main__":
    main()
