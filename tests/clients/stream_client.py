"""Reads a stream of events and says so, until it is killed: a client that has no chance to say goodbye.

    python stream_client.py URL BODY
"""

import sys
import urllib.request

url, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode(), {"content-type": "application/json"})
with urllib.request.urlopen(request, timeout=300) as answer:
    print(answer.status, flush=True)
    for line in answer:
        print(len(line), flush=True)
