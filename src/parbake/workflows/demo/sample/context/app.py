"""The demo's application: forecasts how many loaves a bakery sells in each hour of a day.

A small service of the kind that makes images large: its imports (numpy, pandas, scipy) are most of its start. It fits
its model when it starts, then answers GET /healthz with the forecast as JSON on port 8080.
"""

import json
import os
import time

STARTED = time.monotonic()

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from scipy import optimize  # noqa: E402

OPENS, CLOSES, DAYS = 6, 18, 28


def sales():
    """Return four weeks of sales by hour: a morning peak, busier Saturdays, and noise that is always the same."""
    hours = pd.date_range("2024-01-01", periods=DAYS * 24, freq="h")
    open_hours = hours[(hours.hour >= OPENS) & (hours.hour < CLOSES)]
    noise = np.random.default_rng(7).normal(0, 4, len(open_hours))
    peak = 90 * np.exp(-(((open_hours.hour - 8) / 2.5) ** 2)) + 20
    loaves = peak * np.where(open_hours.dayofweek == 5, 1.6, 1.0) + noise
    return pd.DataFrame({"loaves": np.clip(loaves, 0, None)}, index=open_hours)


def bell(hour, height, at, width, floor):
    """Return a morning peak over a steady trickle."""
    return height * np.exp(-(((hour - at) / width) ** 2)) + floor


def forecast():
    """Fit the peak to the mean of each hour and return it with the loaves to bake."""
    frame = sales()
    mean = frame.groupby(frame.index.hour)["loaves"].mean()
    fitted, _ = optimize.curve_fit(bell, mean.index.to_numpy(float), mean.to_numpy(), p0=(80, 9, 3, 10))
    loaves = {int(hour): round(float(bell(hour, *fitted))) for hour in range(OPENS, CLOSES)}
    return {"busiest_hour": max(loaves, key=loaves.__getitem__), "loaves": loaves}


class Handler(BaseHTTPRequestHandler):
    """Answers /healthz with the forecast, everything else with 404."""

    answer = b""

    def do_GET(self):
        """Answer one request."""
        found = self.path == "/healthz"
        body = self.answer if found else b"not found\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json" if found else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    """Fit the model, then serve until stopped."""
    Handler.answer = json.dumps(forecast()).encode()
    port = int(os.environ.get("PORT", "8080"))
    server = ThreadingHTTPServer(("", port), Handler)
    print(f"forecast: listening on port {port} after {time.monotonic() - STARTED:.1f} s", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
