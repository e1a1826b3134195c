use souk_domain::{Command, ProductId, ProductStatus};
use souk_proto::catalog::v1::{
    CreateProductRequest, CreateProductResponse, DiscontinueProductRequest, DiscontinueProductResponse, LookUpProductsRequest,
    LookUpProductsResponse, ProductFacts, ProductState, PublishProductRequest, PublishProductResponse, SetPriceRequest, SetPriceResponse,
    UpdateProductRequest, UpdateProductResponse, command_service_server::CommandService, lookup_service_server::LookupService,
};
use souk_runtime::Violations;
use tonic::{Request, Response, Status};

use super::{
    convert,
    failure::failure,
    rpc::{self, CommandRpc, Context, Draft, replies},
};
use crate::gateway::Gateway;

/// Most products of one look-up: the lines of a full cart.
const MAX_LOOK_UPS: usize = 100;

replies! {
    CreateProductResponse { product_id }
    UpdateProductResponse { product_id }
    SetPriceResponse { product_id }
    PublishProductResponse { product_id }
    DiscontinueProductResponse { product_id }
}

impl CommandRpc for CreateProductRequest {
    const METHOD: &'static str = "souk.catalog.v1.CommandService/CreateProduct";
    type Response = CreateProductResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let details = convert::details(self.details.as_ref(), bad);
        let price = convert::optional(self.price.as_ref(), |sent| convert::price("price", Some(sent), bad));
        let (product, details, price) = (product?, details?, price?);
        Some(Draft::ready(product.clone(), Command::CreateProduct { product, details, price }))
    }
}

impl CommandRpc for UpdateProductRequest {
    const METHOD: &'static str = "souk.catalog.v1.CommandService/UpdateProduct";
    type Response = UpdateProductResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let changes = convert::changes(self.details.as_ref(), self.update_mask.as_ref(), bad);
        let (product, changes) = (product?, changes?);
        Some(Draft::ready(product.clone(), Command::UpdateProduct { product, changes }))
    }
}

impl CommandRpc for SetPriceRequest {
    const METHOD: &'static str = "souk.catalog.v1.CommandService/SetPrice";
    type Response = SetPriceResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let price = convert::price("price", self.price.as_ref(), bad);
        let (product, price) = (product?, price?);
        Some(Draft::ready(product.clone(), Command::SetPrice { product, price }))
    }
}

impl CommandRpc for PublishProductRequest {
    const METHOD: &'static str = "souk.catalog.v1.CommandService/PublishProduct";
    type Response = PublishProductResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id))?;
        Some(Draft::ready(product.clone(), Command::PublishProduct { product }))
    }
}

impl CommandRpc for DiscontinueProductRequest {
    const METHOD: &'static str = "souk.catalog.v1.CommandService/DiscontinueProduct";
    type Response = DiscontinueProductResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id))?;
        Some(Draft::ready(product.clone(), Command::DiscontinueProduct { product }))
    }
}

/// The commands of the catalog.
pub struct CatalogCommands(pub Gateway);

#[tonic::async_trait]
impl CommandService for CatalogCommands {
    async fn create_product(&self, request: Request<CreateProductRequest>) -> Result<Response<CreateProductResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn update_product(&self, request: Request<UpdateProductRequest>) -> Result<Response<UpdateProductResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn set_price(&self, request: Request<SetPriceRequest>) -> Result<Response<SetPriceResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn publish_product(&self, request: Request<PublishProductRequest>) -> Result<Response<PublishProductResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn discontinue_product(
        &self,
        request: Request<DiscontinueProductRequest>,
    ) -> Result<Response<DiscontinueProductResponse>, Status> {
        rpc::run(&self.0, request).await
    }
}

/// Facts of products for other owners.
pub struct CatalogLookups(pub Gateway);

#[tonic::async_trait]
impl LookupService for CatalogLookups {
    async fn look_up_products(&self, request: Request<LookUpProductsRequest>) -> Result<Response<LookUpProductsResponse>, Status> {
        let sent = request.into_inner().product_ids;
        let mut bad = Violations::new();
        bad.require((1..=MAX_LOOK_UPS).contains(&sent.len()), "product_ids", "want 1–100 ids");
        let products: Vec<_> = (sent.iter().take(MAX_LOOK_UPS).enumerate())
            .filter_map(|(index, id)| bad.check(format!("product_ids[{index}]"), ProductId::new(id)))
            .collect();
        bad.finish()?;
        let catalog = self.0.look_up(products).await.map_err(failure)?;
        let products = catalog.into_iter().filter_map(|(product, facts)| {
            let facts = facts?;
            Some(ProductFacts {
                product_id: product.to_string(),
                state: product_state(facts.status).into(),
                price: facts.price.map(convert::to_money),
                version: facts.version.0,
            })
        });
        Ok(Response::new(LookUpProductsResponse { products: products.collect() }))
    }
}

fn product_state(status: ProductStatus) -> ProductState {
    match status {
        ProductStatus::Missing => ProductState::Unspecified,
        ProductStatus::Draft => ProductState::Draft,
        ProductStatus::Published => ProductState::Published,
        ProductStatus::Discontinued => ProductState::Discontinued,
    }
}
