#!/usr/bin/env python3
"""Ctrl-C at random moments of a run: how long the program takes to end, its exit code, and what it leaves.
benches/cancel.py [RUNS a device, 10] [DEVICE ..]: without devices `cpu` and the first adapter. Needs the release binary alone."""
import os, random, signal, struct, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.environ.get("ORGANUM", os.path.join(ROOT, "target/release/organum"))
MODEL = os.path.join(ROOT, "weights/hippocampus_u_transformer.safetensors")


def scan(path, shape):
    """A NIfTI file of 1 mm whose values repeat."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 2, 8)
    struct.pack_into("<8f", header, 76, *[1] * 8)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<hh", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    with open(path, "wb") as f:
        f.write(bytes(header) + bytes(i * 7919 % 251 for i in range(shape[0] * shape[1])) * shape[2])


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    devices = sys.argv[2:] or ["cpu", "0"]
    rng = random.Random(1)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        scan(f"{folder}/scan.nii", (160, 160, 96))
        os.mkdir(f"{folder}/out")
        for device in devices:
            took = []
            for _ in range(runs):
                args = [BINARY, "segment", f"{folder}/scan.nii", "--model", MODEL, "--output", f"{folder}/out/l.nii.gz", "--device", device]
                run = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                # the handler is there before anything is read
                status = f"/proc/{run.pid}/status"
                while run.poll() is None and not int(open(status).read().split("SigCgt:")[1].split()[0], 16) >> 1 & 1:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 4))
                if run.poll() is not None:
                    continue
                begin = time.monotonic()
                run.send_signal(signal.SIGINT)
                err = run.communicate()[1]
                took.append(time.monotonic() - begin)
                left = os.listdir(f"{folder}/out")
                if run.returncode != 130 or left or took[-1] > 1 or not err.endswith("organum: cancelled\n"):
                    failed += 1
                    print(f"{device}: exit {run.returncode} after {took[-1]:.2f} s, {left} left: {err.strip()[-200:]}")
            took.sort()
            print(f"{device}: {len(took)} interrupted, median {took[len(took) // 2]:.2f} s, longest {took[-1]:.2f} s")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
