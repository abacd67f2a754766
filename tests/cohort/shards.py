"""Segments a cohort on a Ray cluster, a shard of it in each worker.

    python shards.py ORGANUM COHORT MODEL OUT SHARDS [OPTION ..]

Each task is one process of organum; give it the resources that it takes, such as `num_gpus=1`.
"""

import subprocess
import sys

import ray


@ray.remote(num_cpus=1)
def shard(organum, cohort, model, out, which, of, options):
    command = [organum, "segment", "-i", cohort, "-m", model, "-o", f"{out}/", "--shard", f"{which}/{of}"]
    command += ["--resume", "--manifest", f"{out}/manifest.{which}.jsonl", "--quiet", *options]
    return subprocess.run(command, capture_output=True, text=True)


def main():
    organum, cohort, model, out, count, *options = sys.argv[1:]
    ray.init(log_to_driver=False)
    tasks = [shard.remote(organum, cohort, model, out, i + 1, int(count), options) for i in range(int(count))]
    worst = 0
    for i, done in enumerate(ray.get(tasks)):
        print(f"shard {i + 1}/{count}: exit code {done.returncode}", done.stdout.strip(), done.stderr.strip())
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
