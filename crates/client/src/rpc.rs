use souk_event_sourcing::{MintedId, routing_hash};
use souk_proto::{cart::v1 as cart, catalog::v1 as catalog, common::v1::AsOf, orders::v1 as orders, stock::v1 as stock};

/// Which port of the installation serves a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    Command,
    Query,
    /// The command service's port for our own processes.
    Internal,
}

/// A request that changes something, and its reply.
pub trait Command: prost::Message + Clone + Default + 'static {
    type Reply: prost::Message + Default + 'static;
    const DOOR: Door;
    /// `/package.Service/Method`
    const PATH: &'static str;
    fn request_id(&mut self) -> &mut String;
    /// Empty when the command holds whatever the version.
    fn etag(&self) -> &str;
    /// Of the entity it is about; `None` when its id is malformed.
    fn routing_hash(&self) -> Option<u32>;
    fn token(reply: &Self::Reply) -> &str;
}

/// A request that reads, and its reply.
pub trait Query: prost::Message + Clone + Default + 'static {
    type Reply: prost::Message + Default + 'static;
    const PATH: &'static str;
    fn token(&mut self) -> &mut String;
    fn as_of(reply: &Self::Reply) -> Option<&AsOf>;
}

macro_rules! commands {
    ($($door:ident $module:ident $service:literal { $($method:ident: $request:ident of $key:ident $(with $etag:ident)? => $reply:ident,)* })*) => {$($(
        impl Command for $module::$request {
            type Reply = $module::$reply;
            const DOOR: Door = Door::$door;
            const PATH: &'static str = concat!("/", $service, "/", stringify!($method));

            fn request_id(&mut self) -> &mut String {
                &mut self.request_id
            }

            fn etag(&self) -> &str {
                commands!(@etag self $($etag)?)
            }

            fn routing_hash(&self) -> Option<u32> {
                commands!(@hash $key self)
            }

            fn token(reply: &Self::Reply) -> &str {
                &reply.token
            }
        }
    )*)*};
    (@hash order_id $this:ident) => { $this.order_id.parse::<MintedId>().ok().map(|id| id.routing_hash()) };
    (@hash $key:ident $this:ident) => { Some(routing_hash(&$this.$key)) };
    (@etag $this:ident etag) => { &$this.etag };
    (@etag $this:ident) => { "" };
}

macro_rules! queries {
    ($($module:ident $service:literal { $($method:ident: $request:ident => $reply:ident,)* })*) => {$($(
        impl Query for $module::$request {
            type Reply = $module::$reply;
            const PATH: &'static str = concat!("/", $service, "/", stringify!($method));

            fn token(&mut self) -> &mut String {
                &mut self.token
            }

            fn as_of(reply: &Self::Reply) -> Option<&AsOf> {
                reply.as_of.as_ref()
            }
        }
    )*)*};
}

commands! {
    Command catalog "souk.catalog.v1.CommandService" {
        CreateProduct: CreateProductRequest of product_id => CreateProductResponse,
        UpdateProduct: UpdateProductRequest of product_id with etag => UpdateProductResponse,
        SetPrice: SetPriceRequest of product_id with etag => SetPriceResponse,
        PublishProduct: PublishProductRequest of product_id with etag => PublishProductResponse,
        DiscontinueProduct: DiscontinueProductRequest of product_id with etag => DiscontinueProductResponse,
    }
    Command stock "souk.stock.v1.CommandService" {
        ReceiveStock: ReceiveStockRequest of product_id => ReceiveStockResponse,
        AdjustStock: AdjustStockRequest of product_id with etag => AdjustStockResponse,
        ReserveStock: ReserveStockRequest of product_id => ReserveStockResponse,
        ReleaseReservation: ReleaseReservationRequest of product_id => ReleaseReservationResponse,
        CommitReservation: CommitReservationRequest of product_id => CommitReservationResponse,
    }
    Internal stock "souk.stock.v1.ProcessService" {
        ExpireReservation: ExpireReservationRequest of product_id => ExpireReservationResponse,
    }
    Command cart "souk.cart.v1.CommandService" {
        AddItem: AddItemRequest of customer_id with etag => AddItemResponse,
        SetItemQuantity: SetItemQuantityRequest of customer_id with etag => SetItemQuantityResponse,
        RemoveItem: RemoveItemRequest of customer_id with etag => RemoveItemResponse,
        ClearCart: ClearCartRequest of customer_id with etag => ClearCartResponse,
        Checkout: CheckoutRequest of customer_id with etag => CheckoutResponse,
    }
    Command orders "souk.orders.v1.CommandService" {
        PlaceOrder: PlaceOrderRequest of customer_id => PlaceOrderResponse,
        RecordPayment: RecordPaymentRequest of order_id => RecordPaymentResponse,
        CancelOrder: CancelOrderRequest of order_id with etag => CancelOrderResponse,
        RecordShipment: RecordShipmentRequest of order_id with etag => RecordShipmentResponse,
        RecordDelivery: RecordDeliveryRequest of order_id with etag => RecordDeliveryResponse,
    }
    Internal orders "souk.orders.v1.ProcessService" {
        RecordReservation: RecordReservationRequest of order_id => RecordReservationResponse,
        ExpirePayment: ExpirePaymentRequest of order_id => ExpirePaymentResponse,
    }
}

queries! {
    catalog "souk.catalog.v1.QueryService" {
        GetProduct: GetProductRequest => GetProductResponse,
        BatchGetProducts: BatchGetProductsRequest => BatchGetProductsResponse,
        ListProducts: ListProductsRequest => ListProductsResponse,
    }
    stock "souk.stock.v1.QueryService" {
        GetAvailability: GetAvailabilityRequest => GetAvailabilityResponse,
        BatchGetAvailability: BatchGetAvailabilityRequest => BatchGetAvailabilityResponse,
    }
    cart "souk.cart.v1.QueryService" {
        GetCart: GetCartRequest => GetCartResponse,
    }
    orders "souk.orders.v1.QueryService" {
        GetOrder: GetOrderRequest => GetOrderResponse,
        ListOrders: ListOrdersRequest => ListOrdersResponse,
        GetOrderTimeline: GetOrderTimelineRequest => GetOrderTimelineResponse,
        GetSalesSummary: GetSalesSummaryRequest => GetSalesSummaryResponse,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;

    use super::*;

    /// A path mistyped in the table, or a method missing from it, would only show when somebody calls it.
    #[test]
    fn the_table_names_every_unary_method_of_the_contracts() {
        let set = prost_types::FileDescriptorSet::decode(souk_proto::DESCRIPTORS).unwrap();
        let mut declared = BTreeSet::new();
        for file in &set.file {
            let services = file.service.iter().filter(|service| {
                !file.package().starts_with("souk.log") && !file.package().starts_with("souk.internal") && service.name() != "LookupService"
            });
            for service in services {
                let unary = service.method.iter().filter(|method| !method.server_streaming());
                declared.extend(unary.map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name())));
            }
        }
        let source = include_str!("rpc.rs");
        let mut listed = BTreeSet::new();
        let mut service = "";
        for line in source.lines().skip_while(|line| *line != "commands! {").take_while(|line| *line != "#[cfg(test)]") {
            if let Some(name) = line.split('"').nth(1) {
                service = name;
            } else if let Some((method, _)) = line.trim().split_once(": ") {
                listed.insert(format!("/{service}/{method}"));
            }
        }
        assert_eq!(listed, declared);
        assert_eq!(<orders::PlaceOrderRequest as Command>::PATH, "/souk.orders.v1.CommandService/PlaceOrder");
    }

    #[test]
    fn an_etag_is_told_where_there_is_one() {
        let request = catalog::SetPriceRequest { etag: "1-7".into(), ..Default::default() };
        assert_eq!(request.etag(), "1-7");
        assert_eq!(catalog::CreateProductRequest::default().etag(), "");
    }
}
