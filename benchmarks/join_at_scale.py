"""Peak memory and speed of `join` on many synthetic rows, made here and joined in a child process.

    python benchmarks/join_at_scale.py --rows 24000000

One row in five repeats the URL of another, one in fifty shares a provider's id with another but has its own URL. Rows
come in four lists, two of Parquet and two of JSONL, of some 300 bytes a row. Peak memory is the child's VmHWM, the
kernel's own count of resident pages (Linux); the disk needs about 1 GB a million rows while it runs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LISTS = ("parquet", "jsonl", "parquet", "jsonl")
CHILD = """
import sys, time
from pathlib import Path
from rich.console import Console
from pocketclip.collect.join import join_lists
*sources, output, memory = sys.argv[1:]
start = time.monotonic()
summary = join_lists([Path(source) for source in sources], Path(output), Console(stderr=True), int(memory) << 20)
seconds = time.monotonic() - start
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(summary.read, summary.images, summary.merged, seconds, int(peak) / 1e6)
"""
ROWS = """
SELECT 'https://images-' || (image % 5003) || '.example.org/photos/' || md5(image::VARCHAR) || '.jpg?w=1080' AS url,
    ['A photograph of word' || (number % 20011) || ' beside word' || (number % 7919) || ', taken in ' || number % 53,
        'word' || (number % 20011) || ', word' || (number % 104729)] AS captions,
    ['word' || (number % 20011)] AS queries, 'provider-' || (number % 3) AS provider, name::VARCHAR AS id,
    'https://example.org/photos/' || image AS page, 'Author number ' || (image % 100003) AS author,
    'CC BY 4.0' AS licence, 'https://creativecommons.org/licenses/by/4.0/' AS licence_url,
    1000 + image % 3000 AS width, 1000 + image % 2000 AS height
FROM (
    SELECT range AS number, CASE WHEN range % 5 = 4 THEN range // 5 * 4 - range % 7919 % (range // 5 + 1) ELSE range END
        AS image, CASE WHEN range % 50 = 49 THEN greatest(range - 303, 0) ELSE range END AS name FROM range(?, ?)
)
"""


def make_lists(folder: Path, rows: int) -> list[Path]:
    """Write the rows in equal parts, so that repeats reach over lists."""
    import duckdb

    paths = [folder / f"list-{place}.{kind}" for place, kind in enumerate(LISTS)]
    with duckdb.connect(config={"memory_limit": "1GB"}) as connection:
        connection.execute("SET enable_progress_bar = false")
        for place, path in enumerate(paths):
            bounds = [rows * place // len(paths), rows * (place + 1) // len(paths)]
            how = "FORMAT parquet, COMPRESSION zstd" if path.suffix == ".parquet" else "FORMAT json"
            quoted = str(path).replace("'", "''")
            connection.execute(f"COPY ({ROWS}) TO '{quoted}' ({how})", bounds)
    return paths


def main() -> None:
    """Make, join and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24_000_000)
    parser.add_argument("--memory", type=int, default=768, help="MB that DuckDB may take")
    parser.add_argument("--folder", type=Path, help="where the temporary files go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        start = time.monotonic()
        lists = make_lists(Path(folder), options.rows)
        size = sum(path.stat().st_size for path in lists)
        print(f"made {options.rows:,} rows, {size / 1e9:.2f} GB, in {time.monotonic() - start:.0f} s", flush=True)
        output = Path(folder) / "rows.parquet"
        command = [sys.executable, "-c", CHILD, *map(str, lists), str(output), str(options.memory)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        read, images, merged, seconds, peak = (float(word) for word in done.stdout.splitlines()[-1].split())
        print(f"rows in        {read:,.0f}\nimages out     {images:,.0f}\nrows merged    {merged:,.0f}")
        print(f"seconds        {seconds:,.0f}\nrows/s         {read / seconds:,.0f}")
        print(f"peak memory    {peak:.2f} GB resident (VmHWM)\noutput         {output.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
