#!/usr/bin/env python3
"""Places an order from Python: what a caller in any language does.

    python3 -m venv venv && venv/bin/pip install --require-hashes -r requirements.txt
    venv/bin/python place_order.py --command 127.0.0.1:50051 --query 127.0.0.1:50052

It shows the four habits of a good caller:
  1. every command has a request id (a UUID version 7), made once and kept when the command is sent again;
  2. every call has a deadline;
  3. the token of a reply goes into the next query, which then sees the command's effect;
  4. errors are told apart by the reason of their ErrorInfo, never by their message.

The stubs are made from the contracts when the program starts. A real program generates them once: see
proto/buf.gen.yaml.
"""

import argparse
import os
import pathlib
import sys
import time
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

PROTO = pathlib.Path(os.environ.get("SOUK_PROTO", pathlib.Path(__file__).resolve().parents[4] / "proto"))
sys.path.insert(0, str(PROTO))
catalog_messages, catalog = grpc.protos_and_services("souk/catalog/v1/command_service.proto")
stock_messages, stock = grpc.protos_and_services("souk/stock/v1/command_service.proto")
orders_messages, orders = grpc.protos_and_services("souk/orders/v1/command_service.proto")
reads_messages, reads = grpc.protos_and_services("souk/orders/v1/query_service.proto")
product_messages = grpc.protos("souk/catalog/v1/product.proto")
order_messages = grpc.protos("souk/orders/v1/order.proto")
common_messages = grpc.protos("souk/common/v1/common.proto")

DEADLINE_SECONDS = 10
CALLER = [("souk-caller", "python-example")]


def request_id() -> str:
    """A UUID version 7 (RFC 9562): its first 48 bits are the time, which keeps the ledger's index compact."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | (0x7 << 76) | (uuid.uuid4().int & (1 << 76) - 1)
    value = value & ~(0b11 << 62) | (0b10 << 62)
    return str(uuid.UUID(int=value))


def connect(address: str) -> grpc.Channel:
    """A channel that repeats calls answered UNAVAILABLE, as service_config.json says."""
    config = (PROTO / "service_config.json").read_text()
    return grpc.insecure_channel(address, options=[("grpc.service_config", config)])


def send(method, message):
    return method(message, timeout=DEADLINE_SECONDS, metadata=CALLER)


def open_shop(channel: grpc.Channel, product_id: str) -> None:
    """A product on sale with ten units on the shelf."""
    products = catalog.CommandServiceStub(channel)
    price = common_messages.Money(currency="EUR", minor_units=4900)
    details = product_messages.ProductDetails(title="Copper kettle", category="kitchen")
    create = catalog_messages.CreateProductRequest(request_id=request_id(), product_id=product_id, details=details, price=price)
    send(products.CreateProduct, create)
    receive = stock_messages.ReceiveStockRequest(request_id=request_id(), product_id=product_id, quantity=10)
    send(stock.CommandServiceStub(channel).ReceiveStock, receive)
    send(products.PublishProduct, catalog_messages.PublishProductRequest(request_id=request_id(), product_id=product_id))


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo among the details of a failed call."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            return info
    return error_details_pb2.ErrorInfo()


def main() -> None:
    parser = argparse.ArgumentParser(description="Places an order, repeats it, reads it back, and is refused once.")
    parser.add_argument("--command", default="127.0.0.1:50051", help="address of the command service")
    parser.add_argument("--query", default="127.0.0.1:50052", help="address of the query service")
    args = parser.parse_args()
    command, query = connect(args.command), connect(args.query)
    product_id = f"kettle-{uuid.uuid4().hex[:8]}"
    open_shop(command, product_id)
    order_service = orders.CommandServiceStub(command)

    place = orders_messages.PlaceOrderRequest(
        request_id=request_id(),
        customer_id="python-customer",
        lines=[orders_messages.PlaceOrderLine(product_id=product_id, quantity=2)],
    )
    placed = send(order_service.PlaceOrder, place)
    print(f"placed   {placed.order_id}  {placed.total.currency} {placed.total.minor_units / 100:.2f}")

    # As after a lost reply: the same request under the same id is answered the same, and nothing happens twice.
    repeated = send(order_service.PlaceOrder, place)
    assert repeated.order_id == placed.order_id, "a repeated request made another order"
    print(f"repeated {repeated.order_id}  the same order")

    # With the token of the reply the read side waits until it shows the order.
    read = send(reads.QueryServiceStub(query).GetOrder, reads_messages.GetOrderRequest(order_id=placed.order_id, token=placed.token))
    state = order_messages.OrderState.Name(read.order.state)
    print(f"read     {read.order.order_id}  {state}")

    place.lines[0].quantity = 3
    try:
        send(order_service.PlaceOrder, place)
    except grpc.RpcError as error:
        info = error_info(error)
        print(f"refused  {error.code().name}  {info.domain}/{info.reason}  {error.details()}")
        assert info.reason == "REQUEST_ID_REUSED", "another request under a used id must be refused"
    else:
        raise SystemExit("another request under a used id was accepted")


if __name__ == "__main__":
    main()
