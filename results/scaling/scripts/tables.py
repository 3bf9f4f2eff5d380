"""throughput.csv and scaling.csv from what came back."""
import csv, json, sys
from pathlib import Path
K = Path(".")  # folder of the scores
def throughput():
    rows, base = [], {}
    names = {"original": "as released (971f045)", "layout": "channels-last forced in the compiler", "layout+benchmark": "the same, and cudnn.benchmark", "benchmark": "cudnn.benchmark alone",
             "whole": "whole step compiled, channels-last, cudnn.benchmark", "kernels": "the same, with CUDA kernels for the blocks"}
    for call in (1, 2, 3, 4):
        for path in sorted((K / f"call{call}").glob("throughput_*.json")):
            for r in json.loads(path.read_text()):
                if r["kind"] != "step": continue
                width = eval(r["options"]).get("width", {"bandset": 48, "pannet": 32, "fusionnet": 48}[r["network"]])
                name = names[r["variant"]] + (", version 1 (call 2)" if r["variant"] == "kernels" and call == 2 else ", version 2 (call 4)" if r["variant"] == "kernels" else "")
                key = (r["network"], width, r["bands"])
                if r["variant"] == "original": base[key] = r["pairs_per_s"]
                rows.append([key, {"card": r["card"], "torch": r["torch"], "call": call, "network": r["network"], "width": width, "bands": r["bands"], "batch": r["batch"], "variant": name,
                             "step_ms": round(r["step_ms"], 2), "again_ms": round(r["again_ms"], 2), "pairs_per_s": round(r["pairs_per_s"]), "peak_gib": round(r["peak_gib"], 2), "ready_s": round(r["ready_s"], 1)}])
    out = [row | {"speedup": round(row["pairs_per_s"] / base[key], 2) if key in base else ""} for key, row in rows]
    with (K / "throughput.csv").open("w", newline="") as f:
        w = csv.DictWriter(f, out[0].keys(), lineterminator="\n"); w.writeheader(); w.writerows(out)
    for r in out: print(r["network"], r["width"], r["bands"], r["batch"], r["variant"], r["step_ms"], r["pairs_per_s"], r["speedup"], sep=" | ")
    kr = []
    for call in (2, 4):
        for r in json.loads((K / f"call{call}" / "throughput_c.json").read_text()):
            if r["kind"] == "kernel time": kr.append({"card": r["card"], "version": call // 2, "kernel": r["name"], "us": round(r["us"], 1), "tflop_s": round(r["tflop_s"])})
            if r["kind"] == "simulation": kr.append({"card": r["card"], "version": call // 2, "kernel": f"simulation of 512 pairs, {r['bands']} bands, {r['variant']}", "us": round(1e3 * r["step_ms"], 1), "tflop_s": ""})
    with (K / "throughput_kernels.csv").open("w", newline="") as f:
        w = csv.DictWriter(f, kr[0].keys(), lineterminator="\n"); w.writeheader(); w.writerows(kr)
throughput()

def scaling():
    import common, pandas as pd
    from pansharp_study import real
    rows = pd.read_csv(K / "scores.csv", keep_default_na=False)
    for c in ("sam_deg", "ergas"): rows[c] = rows[c].astype(float)
    rows["registered"] = rows["registered"].astype(str) == "True"
    rows["split"], rows["resolution"] = "development", "reduced"
    cl = rows[rows["weights"] == "classical"]
    lists = {"development without robustness set": lambda a: a != "QB-mmfn", "RR_SCENES.csv": lambda a: a != "GF2-pancollection"}
    logs = {w: [r for r in json.loads((K / "logs" / f"log_{w}.json").read_text()) if r["event"] == "annealed"] for w in (48, 96)}
    out, means = [], []
    for (weights, told), part in rows[rows["weights"] != "classical"].groupby(["weights", "told"], sort=False):
        facts = {"weights": weights, "told": told or 1, "width": 48, "parameters": 473689, "pairs": 240000, "pairs_with_branch": 240000, "schedule": "released: cosine, EMA .999", "validation_4": "", "validation_8": ""}
        if "_w" in weights:
            _, w, n, kind = weights.split("_"); w, n = int(w[1:]), int(n)
            log = next(r for r in logs[w] if r["trunk_pairs"] == n)
            v = log[f"validation_{kind}"]
            facts |= {"width": w, "parameters": {48: 473689, 96: PARAMETERS[96]}[w], "pairs": n, "pairs_with_branch": log["pairs_with_branch"] if kind == "annealed" else n,
                      "schedule": "WSD, annealed 15 %, no EMA" if kind == "annealed" else "constant rate, EMA .999", "validation_4": round(v[0], 5), "validation_8": round(v[1], 5)}
        for name, keep in lists.items():
            for bands in (4, 8):
                c, p = (t[(t["bands"] == bands) & t["acquisition"].map(keep)] for t in (cl, part))
                best, _ = real.best_classical(c, registered=True)
                mean = {}
                for k in ("sam_deg", "ergas"):
                    ours = p.groupby("acquisition", sort=False)[k].mean()
                    theirs = c[(c["method"] == best) & c["registered"]].groupby("acquisition", sort=False)[k].mean()
                    mean[k] = (ours, theirs)
                n = len(mean["ergas"][0])
                means.append(facts | {"list": name, "bands": bands, "acquisitions": n, "against": best, **{k: round(a.mean(), 4) for k, (a, b) in mean.items()},
                              **{f"{k}_ratio": round(a.mean() / b.mean(), 4) for k, (a, b) in mean.items()}, **{f"{k}_mean_of_ratios": round((a / b).mean(), 4) for k, (a, b) in mean.items()}, "card": "NVIDIA H200"})
                for a in mean["ergas"][0].index:
                    out.append(facts | {"list": name, "bands": bands, "acquisition": a, "against": best, "scored_on": "CPU", **{k: round(x[a], 4) for k, (x, y) in mean.items()}, **{f"{k}_ratio": round(x[a] / y[a], 4) for k, (x, y) in mean.items()}, "card": "NVIDIA H200"})
    for name, t in (("scaling.csv", out), ("scaling_means.csv", means)):
        pd.DataFrame(t).to_csv(K / name, index=False)
    m = pd.DataFrame(means)
    pd.set_option("display.width", 250); pd.set_option("display.max_rows", 500); pd.set_option("display.max_columns", 30)
    for name in lists:
        for bands in (4, 8):
            x = m[(m["list"] == name) & (m["bands"] == bands)]
            print(f"\n{name}, {bands} bands, {x['acquisitions'].iloc[0]} acquisitions, against {x['against'].iloc[0]}"); print(x[["width", "pairs", "schedule", "told", "sam_deg", "ergas", "sam_deg_ratio", "ergas_ratio", "sam_deg_mean_of_ratios", "ergas_mean_of_ratios"]].to_string(index=False))
    o = pd.DataFrame(out); o = o[o["told"].astype(str) == "1"]
    o["r"] = o["sam_deg_ratio"].map("{:.3f}".format) + "/" + o["ergas_ratio"].map("{:.3f}".format)
    print(o[o["list"] == "development without robustness set"].pivot_table(index=["width", "pairs", "schedule"], columns="acquisition", values="r", aggfunc="first", sort=False).to_string())

PARAMETERS = {48: 473689, 96: next(r["parameters"] for r in json.loads((K / "logs" / "log_96.json").read_text()) if r["event"] == "ready")}
if "scores" in sys.argv: scaling()
