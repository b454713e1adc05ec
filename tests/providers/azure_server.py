"""A vault that answers as Azure Key Vault does, a token endpoint and a metadata service, for tests.

    azure_server.py DIR

DIR has `server.pem` and `server.key` for TLS, and `state.json`, which is read for each request and
says which keys there are, who may log in, and what goes wrong. The ports (TLS, metadata) are
printed. What was asked for is appended to `requests`, without secrets.
"""

import base64
import hashlib
import json
import os
import ssl
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

RESOURCE = "https://vault.azure.net"
PAGE = 2
DIR = sys.argv[1]
LOCK = threading.Lock()
FAULTS = {}


def state():
    with open(os.path.join(DIR, "state.json")) as file:
        return json.load(file)


def note(**what):
    with LOCK, open(os.path.join(DIR, "requests"), "a") as file:
        file.write(json.dumps(what) + "\n")


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value):
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def token_of(who):
    """Long and not to be guessed, so that a test can look for it."""
    return "token-" + hashlib.sha256(who.encode()).hexdigest()


class Refused(Exception):
    def __init__(self, status, code, message, inner=None, headers=()):
        error = {"code": code, "message": message}
        if inner:
            error["innererror"] = {"code": inner}
        super().__init__(message)
        self.status, self.body, self.headers = status, {"error": error}, headers


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.handle_request(b"")

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        self.handle_request(self.rfile.read(length))

    def send(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            pass

    def handle_request(self, body):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.now = state()
        try:
            if self.fault(url.path):
                return
            self.send(200, self.answer(url.path, query, body))
        except Refused as refused:
            self.send(refused.status, refused.body, refused.headers)

    def fault(self, path):
        """Answers as a test wants it, for requests whose path contains a word."""
        fault = self.now.get("fault")
        if not fault or fault["in"] not in path:
            return False
        if fault.get("authorized") and "authorization" not in self.headers:
            return False
        with LOCK:
            count = FAULTS[fault["id"]] = FAULTS.get(fault["id"], 0) + 1
        if count > fault.get("times", 1 << 30):
            return False
        time.sleep(fault.get("delay", 0))
        if "status" not in fault:
            return False
        note(fault=fault["status"])
        self.send(fault["status"], fault.get("body", "").encode(), fault.get("headers", []))
        return True


class Metadata(Handler):
    def answer(self, path, query, _):
        note(metadata=path, query=query)
        if self.headers.get("metadata") != "true" or "x-forwarded-for" in self.headers:
            raise Refused(400, "invalid_request", "no metadata header")
        identities = self.now["identities"]
        who = query.get("client_id", "system")
        if path != "/metadata/identity/oauth2/token" or query.get("resource") != RESOURCE:
            raise Refused(400, "invalid_resource", "no such resource")
        if who not in identities:
            self.send(400, {"error": "invalid_request", "error_description": "Identity not found"})
            raise SystemExit
        return {
            "access_token": token_of(who),
            "expires_on": str(int(time.time()) + 3600),
            "resource": RESOURCE,
            "token_type": "Bearer",
        }

    def handle_request(self, body):
        try:
            super().handle_request(body)
        except SystemExit:
            pass


class Vault(Handler):
    def answer(self, path, query, body):
        names = path.strip("/").split("/")
        if names[1:] == ["oauth2", "v2.0", "token"]:
            return self.log_in(names[0], body)
        self.authorize()
        if "api-version" not in query:
            raise Refused(400, "BadParameter", "api-version is missing")
        if len(names) < 3 or names[0] != "keys":
            raise Refused(404, "NotFound", "no such collection")
        name, rest = names[1], names[2:]
        note(path=path, method=self.command)
        operation = rest[-1] if rest[-1] in ("versions", "unwrapkey") else "get"
        if operation in self.now.get("forbidden", []):
            raise Refused(403, "Forbidden", f"not allowed to {operation}", "ForbiddenByRbac")
        key = self.now["keys"].get(name)
        if operation == "versions":
            return self.versions(name, key, query)
        version = next((it for it in (key or []) if it["name"] == rest[0]), None)
        if version is None:
            raise Refused(404, "KeyNotFound", f"A key with {name}/{rest[0]} was not found")
        if operation == "get":
            return {"key": self.jwk(name, version), "attributes": self.attributes(version)}
        return self.unwrap(name, version, json.loads(body))

    def log_in(self, tenant, body):
        form = dict(urllib.parse.parse_qsl(body.decode()))
        note(login=tenant, scope=form.get("scope"))
        kind = "client_assertion" if "client_assertion" in form else "client_secret"
        application = self.now["applications"].get(form.get("client_id"), {})
        if (
            application.get("tenant") != tenant
            or application.get(kind) != form.get(kind)
            or form.get("scope") != RESOURCE + "/.default"
            or form.get("grant_type") != "client_credentials"
        ):
            text = "AADSTS7000215: Invalid client secret provided."
            self.send(
                401,
                {"error": "invalid_client", "error_description": text, "error_codes": [7000215]},
            )
            raise SystemExit
        return {
            "token_type": "Bearer",
            "expires_in": 3599,
            "access_token": token_of(form["client_id"]),
        }

    def handle_request(self, body):
        try:
            super().handle_request(body)
        except SystemExit:
            pass

    def authorize(self):
        resource = self.now.get("resource", RESOURCE)
        challenge = f'Bearer authorization="https://login.example/t", resource="{resource}"'
        known = [*self.now["applications"], *self.now["identities"]]
        permitted = ["Bearer " + token_of(who) for who in known]
        if self.headers.get("authorization") not in permitted:
            headers = [("WWW-Authenticate", challenge)]
            raise Refused(401, "Unauthorized", "AKV10000: no valid token", headers=headers)

    def id_of(self, name, version):
        return f"https://{self.headers['host']}/keys/{name}/{version['name']}"

    def attributes(self, version):
        wanted = ("enabled", "nbf", "exp", "created", "recoveryLevel")
        return {name: version[name] for name in wanted if version.get(name) is not None}

    def jwk(self, name, version):
        kid = self.id_of(name, version)
        if version["kty"] == "EC":
            return {"kid": kid, "kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}
        public = self.private(version).public_key().public_numbers()
        return {
            "kid": kid,
            "kty": version["kty"],
            "key_ops": version["ops"],
            "n": number(public.n),
            "e": number(public.e),
        }

    def private(self, version):
        return serialization.load_pem_private_key(version["pem"].encode(), None)

    def versions(self, name, key, query):
        start = int(query.get("$skiptoken", 0))
        listed = sorted(key or [], key=lambda version: version["name"])
        page = listed[start : start + PAGE]
        answer = {
            "value": [
                {"kid": self.id_of(name, it), "attributes": self.attributes(it)} for it in page
            ],
            "nextLink": None,
        }
        if start + PAGE < len(listed):
            host = self.now.get("next_host", self.headers["host"])
            answer["nextLink"] = (
                f"https://{host}/keys/{name}/versions?api-version=x&$skiptoken={start + PAGE}"
            )
        return answer

    def unwrap(self, name, version, request):
        if not version["enabled"]:
            text = "Operation unwrapKey is not allowed on a disabled key."
            raise Refused(403, "Forbidden", text, "KeyDisabled")
        if request["alg"] != "RSA-OAEP-256":
            raise Refused(400, "BadParameter", "algorithm")
        data = base64.urlsafe_b64decode(request["value"] + "==")
        sha256 = hashes.SHA256()
        try:
            plain = self.private(version).decrypt(
                data, padding.OAEP(padding.MGF1(sha256), sha256, None)
            )
        except ValueError:
            raise Refused(400, "BadParameter", "The parameter is incorrect.") from None
        return {"kid": self.id_of(name, version), "value": b64(plain)}


class TlsServer(ThreadingHTTPServer):
    def get_request(self):
        socket, address = super().get_request()
        socket.settimeout(120)
        # The handshake is made by the first read, in the thread of the connection.
        return CONTEXT.wrap_socket(socket, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, *_):
        pass


CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CONTEXT.load_cert_chain(os.path.join(DIR, "server.pem"), os.path.join(DIR, "server.key"))
vault = TlsServer(("127.0.0.1", 0), Vault)
metadata = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
threading.Thread(target=metadata.serve_forever, daemon=True).start()
print(vault.server_address[1], metadata.server_address[1], flush=True)
vault.serve_forever()
