use souk_domain::{Command, ProductId};
use souk_proto::catalog::v1::{
    CreateProductRequest, CreateProductResponse, DiscontinueProductRequest, DiscontinueProductResponse, PublishProductRequest,
    PublishProductResponse, SetPriceRequest, SetPriceResponse, UpdateProductRequest, UpdateProductResponse,
    command_service_server::CommandService,
};
use souk_runtime::Violations;
use tonic::{Request, Response, Status};

use super::{
    convert,
    rpc::{self, CommandRpc, Context, Draft, replies},
};
use crate::gateway::Gateway;

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
