"""Who asks: `nobody`, a `guest` who holds carts and orders, a `customer`, a `vendor` or an `admin` who is logged in, as
SOUK_CONTRACT_CALLER says.

An id that is made up leads nowhere, and a contract that is only tested on 404s says little. So before a call is sent, a
valid id in its path is replaced by that of a thing that is really there and belongs to the caller. Nothing else of a call
is changed, and no answer is looked at here.
"""

import datetime
import itertools
import json
import os
import threading
import urllib.request

import schemathesis
from schemathesis.core.parameters import ParameterLocation

URL = os.environ["SOUK_CONTRACT_URL"]
CALLER = os.environ["SOUK_CONTRACT_CALLER"]
OPERATOR = os.environ["SOUK_CONTRACT_OPERATOR"]
# A thing is asked for this often before the next one is made: some calls are its end.
CALLS_EACH = 4

numbers = itertools.count(1)
# Given out here. Whatever else stands in a case is made up, and must stay so.
tokens = set()


def ask(method, path, body, token=None):
    # From an address of its own: that of the cases has shown so many wrong passwords that it must wait.
    headers = {"Content-Type": "application/json", "X-Forwarded-For": f"198.51.100.{next(numbers) % 250}"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=15) as response:
        return json.loads(response.read() or b"null")


class Things:
    """Things of one kind, each used a few times."""

    def __init__(self, make, calls_each=CALLS_EACH):
        self.make, self.calls_each, self.thing, self.calls = make, calls_each, None, 0
        self.lock = threading.Lock()

    def take(self):
        with self.lock:
            if self.calls % self.calls_each == 0:
                self.thing = self.make()
            self.calls += 1
            return self.thing


PASSWORD = "copper lantern 7"


def new_account():
    """An account, logged in: some calls log it out or delete it."""
    email = f"{CALLER}-{next(numbers)}@souk.test"
    user = ask("POST", "/api/users", {"email": email, "password": PASSWORD, "name": "Contract"})
    session = ask("POST", "/api/sessions", {"email": email, "password": PASSWORD})
    account = {"user": user["id"], "token": session["access_token"]}
    tokens.add(account["token"])
    if CALLER == "vendor":
        account["shop"] = ask("POST", "/api/shops", {"name": "Contract"}, account["token"])["id"]
    if CALLER == "admin":
        ask("POST", f"/api/users/{user['id']}/roles", {"role": "admin"}, OPERATOR)
    return account


def caller():
    """The account that asks, or nobody. Nothing ends it."""
    return owners.take()["token"] if CALLER in SIGNED_IN else None


def new_product(token=OPERATOR):
    sku = f"{CALLER}-{next(numbers)}"
    variants = [{"sku": sku, "price": {"amount": 1250, "currency": "EUR"}, "stock": 1000}]
    product = ask("POST", "/api/products", {"title": "Contract", "variants": variants}, token)
    return {"id": product["id"], "sku": sku, "token": token}


def own_product():
    return new_product(caller())


def new_cart():
    token = caller()
    cart = ask("POST", "/api/carts", {}, token)
    token = token or cart["token"]
    sku = goods.take()["sku"]
    ask("POST", f"/api/carts/{cart['id']}/items", {"sku": sku, "quantity": 2}, token)
    return {"id": cart["id"], "sku": sku, "token": token}


def new_order():
    token = caller()
    order = ask("POST", "/api/orders", {
        "items": [{"sku": goods.take()["sku"], "quantity": 1}],
        "payment": {"provider": "sandbox", "token": "tok_ok"},
        "email": "ada@example.com",
        "shipping_address": {"name": "Ada", "line1": "1 Main Street", "city": "Paris", "postal_code": "75001", "country": "FR"},
    }, token)
    return {"id": order["id"], "kind": "order", "token": token or order["token"]}


def new_draft():
    token = OPERATOR if CALLER in ("nobody", "guest", "customer") else caller()
    sku = new_product(token)["sku"]
    now = datetime.datetime.now(datetime.timezone.utc)
    sale = ask("POST", "/api/flash-sales", {
        "sku": sku, "price": {"amount": 990, "currency": "EUR"}, "quantity": 500, "per_customer_limit": 300,
        "starts_at": now.isoformat(), "ends_at": (now + datetime.timedelta(hours=1)).isoformat(), "guests": True,
    }, token)
    return {"id": sale["id"], "token": token}


def new_sale():
    """A sale that is on, with a claim of the caller."""
    sale = new_draft()["id"]
    ask("POST", f"/api/flash-sales/{sale}/approve", None, OPERATOR)
    token = caller()
    claim = ask("POST", f"/api/flash-sales/{sale}/claims", {"quantity": 2}, token)
    return {"id": sale, "claim": claim["id"], "token": token or claim["token"]}


def new_session():
    token = new_account()["token"]
    sessions = ask("GET", "/api/users/me/sessions", None, token)
    return {"id": sessions["items"][0]["id"], "token": token}


def new_key():
    token = caller()
    key = ask("POST", "/api/users/me/keys", {"label": "contract", "scopes": ["orders.read"]}, token)
    return {"id": key["id"], "token": token}


def new_shop():
    account = owners.take()
    return {"id": account["shop"], "token": account["token"]}


def another_account():
    return {"id": new_account()["user"], "role": "admin", "token": caller()}


SIGNED_IN = ("customer", "vendor", "admin")
owners = Things(new_account, 200)
# What is asked under these paths may log the account out or delete it.
mortals = Things(new_account, 2)
MORTAL = ("/api/users/me", "/api/sessions")
goods = Things(new_product)
sales, drafts = Things(new_sale), Things(new_draft)
# What runs a sale; the first that fits counts.
RUN = [
    ("/api/flash-sales/{id}/approve", Things(new_draft, 1)),
    ("/api/flash-sales/{id}/", sales),
    ("/api/flash-sales/{id}", drafts),
]
ALL_HAVE = [
    ("/api/flash-sales/{id}", sales),
    ("/api/carts/{id}", Things(new_cart)),
    ("/api/orders/{id}", Things(new_order)),
    ("/api/users/me/sessions/{id}", Things(new_session, 2)),
    ("/api/users/me/keys/{id}", Things(new_key, 2)),
]
OWN = {
    "guest": [("/api/carts/{id}", Things(new_cart)), ("/api/orders/{id}", Things(new_order)), ("/api/flash-sales/{id}", sales)],
    "customer": ALL_HAVE,
    "vendor": [
        ("/api/products/{id}", Things(own_product)),
        ("/api/inventory/{sku}", Things(own_product)),
        ("/api/shops/{id}", Things(new_shop)),
        *RUN,
        *ALL_HAVE,
    ],
    "admin": [
        ("/api/products/{id}", Things(own_product)),
        ("/api/inventory/{sku}", Things(own_product)),
        ("/api/cluster/entities/{kind}/{id}", Things(new_order)),
        ("/api/users/{id}", Things(another_account)),
        *RUN,
        *ALL_HAVE,
    ],
}


@schemathesis.auth(refresh_interval=None)
class Account:
    """Signs what an account asks. A thing of its own is asked for by the account that made it."""

    def get(self, case, context):
        if CALLER in SIGNED_IN and case.operation.path.startswith(MORTAL):
            return mortals.take()["token"]
        return caller()

    def set(self, case, token, context):
        if token:
            case.headers["Authorization"] = f"Bearer {token}"


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is not None and case.meta.is_negative_at(ParameterLocation.PATH):
        return
    for path, things in OWN.get(CALLER, []):
        if case.operation.path.startswith(path):
            thing = things.take()
            for name in case.path_parameters:
                case.path_parameters[name] = thing[name]
            shown = case.headers.get("Authorization", "").removeprefix("Bearer ")
            if CALLER == "guest" or shown in tokens:
                case.headers["Authorization"] = f"Bearer {thing['token']}"
            return
