use souk_proto::stock::v1::{
    BatchGetAvailabilityRequest, BatchGetAvailabilityResponse, GetAvailabilityRequest, GetAvailabilityResponse,
    query_service_server::QueryService,
};
use souk_runtime::Failure;
use tonic::{Request, Response, Status};

use super::{
    Queries,
    bytes::ByteRpc,
    entity::{Asked, stored},
};
use crate::{
    cache::View,
    reply::{BatchReply, EncodedReply, EntityReply},
};

#[derive(Clone)]
pub(crate) struct GetAvailability;

impl ByteRpc for GetAvailability {
    const PATH: &'static str = "/souk.stock.v1.QueryService/GetAvailability";
    type Request = GetAvailabilityRequest;
    type Reply = EntityReply;

    async fn reply(queries: &Queries, message: &GetAvailabilityRequest, asked: Asked<'_>) -> Result<EntityReply, Failure> {
        queries.0.core()?.entity(View::Availability, &message.product_id, &message.token, asked).await
    }
}

#[derive(Clone)]
pub(crate) struct BatchGetAvailability;

impl ByteRpc for BatchGetAvailability {
    const PATH: &'static str = "/souk.stock.v1.QueryService/BatchGetAvailability";
    type Request = BatchGetAvailabilityRequest;
    type Reply = BatchReply;

    async fn reply(queries: &Queries, message: &BatchGetAvailabilityRequest, asked: Asked<'_>) -> Result<BatchReply, Failure> {
        queries.0.core()?.entities(View::Availability, &message.product_ids, &message.token, asked).await
    }
}

#[tonic::async_trait]
impl QueryService for Queries {
    async fn get_availability(&self, request: Request<GetAvailabilityRequest>) -> Result<Response<GetAvailabilityResponse>, Status> {
        Ok(Response::new(stored(GetAvailability::reply(self, request.get_ref(), Asked::from(&request)).await?.bytes())?))
    }

    async fn batch_get_availability(
        &self,
        request: Request<BatchGetAvailabilityRequest>,
    ) -> Result<Response<BatchGetAvailabilityResponse>, Status> {
        Ok(Response::new(stored(BatchGetAvailability::reply(self, request.get_ref(), Asked::from(&request)).await?.bytes())?))
    }
}
