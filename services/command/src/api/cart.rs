use souk_domain::{Command, CustomerId, OrderId, ProductId, Quantity, order::Terms};
use souk_proto::cart::v1::{
    AddItemRequest, AddItemResponse, CheckoutRequest, CheckoutResponse, ClearCartRequest, ClearCartResponse, RemoveItemRequest,
    RemoveItemResponse, SetItemQuantityRequest, SetItemQuantityResponse, command_service_server::CommandService,
};
use souk_runtime::Violations;
use tonic::{Request, Response, Status};

use super::{
    convert,
    rpc::{self, CommandRpc, Context, Draft, Needs, replies},
};
use crate::gateway::Gateway;

replies! {
    AddItemResponse { customer_id }
    SetItemQuantityResponse { customer_id }
    RemoveItemResponse { customer_id }
    ClearCartResponse { customer_id }
    CheckoutResponse { customer_id, order_id, total }
}

impl CommandRpc for AddItemRequest {
    const METHOD: &'static str = "souk.cart.v1.CommandService/AddItem";
    type Response = AddItemResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let customer = bad.check("customer_id", CustomerId::new(&self.customer_id));
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let quantity = bad.check("quantity", Quantity::new(self.quantity));
        let (customer, product, quantity) = (customer?, product?, quantity?);
        let (id, asked) = (customer.clone(), vec![product.clone()]);
        let build = move |mut catalog: souk_domain::Catalog| {
            let facts = catalog.remove(&product).flatten();
            Command::AddItem { customer: customer.clone(), product: product.clone(), quantity, facts }
        };
        Some(Draft::new(id, Needs::Products(asked, Box::new(build))))
    }
}

impl CommandRpc for SetItemQuantityRequest {
    const METHOD: &'static str = "souk.cart.v1.CommandService/SetItemQuantity";
    type Response = SetItemQuantityResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let customer = bad.check("customer_id", CustomerId::new(&self.customer_id));
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let quantity = bad.check("quantity", Quantity::new(self.quantity));
        let (customer, product, quantity) = (customer?, product?, quantity?);
        Some(Draft::ready(customer.clone(), Command::SetItemQuantity { customer, product, quantity }))
    }
}

impl CommandRpc for RemoveItemRequest {
    const METHOD: &'static str = "souk.cart.v1.CommandService/RemoveItem";
    type Response = RemoveItemResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let customer = bad.check("customer_id", CustomerId::new(&self.customer_id));
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let (customer, product) = (customer?, product?);
        Some(Draft::ready(customer.clone(), Command::RemoveItem { customer, product }))
    }
}

impl CommandRpc for ClearCartRequest {
    const METHOD: &'static str = "souk.cart.v1.CommandService/ClearCart";
    type Response = ClearCartResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let customer = bad.check("customer_id", CustomerId::new(&self.customer_id))?;
        Some(Draft::ready(customer.clone(), Command::ClearCart { customer }))
    }
}

impl CommandRpc for CheckoutRequest {
    const METHOD: &'static str = "souk.cart.v1.CommandService/Checkout";
    type Response = CheckoutResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, context: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let customer = bad.check("customer_id", CustomerId::new(&self.customer_id));
        let expected = convert::optional(self.expected_total.as_ref(), |sent| convert::money("expected_total", Some(sent), bad));
        let (customer, expected_total) = (customer?, expected?);
        let region = context.home(&customer, bad)?;
        let order = OrderId::mint(context.request_id, context.caller, &customer, Self::METHOD, region);
        let (id, of, payment_deadline) = (customer.clone(), customer.clone(), context.payment_deadline());
        let build = move |catalog| Command::Checkout {
            order,
            customer: customer.clone(),
            terms: Terms { customer: customer.clone(), catalog, expected_total, payment_deadline },
        };
        Some(Draft { order: Some(order), ..Draft::new(id, Needs::Cart(of, Box::new(build))) })
    }
}

/// The commands on carts.
pub struct CartCommands(pub Gateway);

#[tonic::async_trait]
impl CommandService for CartCommands {
    async fn add_item(&self, request: Request<AddItemRequest>) -> Result<Response<AddItemResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn set_item_quantity(&self, request: Request<SetItemQuantityRequest>) -> Result<Response<SetItemQuantityResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn remove_item(&self, request: Request<RemoveItemRequest>) -> Result<Response<RemoveItemResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn clear_cart(&self, request: Request<ClearCartRequest>) -> Result<Response<ClearCartResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn checkout(&self, request: Request<CheckoutRequest>) -> Result<Response<CheckoutResponse>, Status> {
        rpc::run(&self.0, request).await
    }
}
