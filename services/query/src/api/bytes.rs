use std::{
    convert::Infallible,
    marker::PhantomData,
    task::{Context, Poll},
};

use prost::Message;
use souk_runtime::{Failure, take_unary};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

use super::{Queries, entity::Asked};
use crate::reply::EncodedReply;

/// One RPC whose reply exists as bytes already.
pub(crate) trait ByteRpc: Send + Sync + 'static {
    /// `/package.Service/Method`
    const PATH: &'static str;
    type Request: Message + Default + 'static;
    type Reply: EncodedReply + Send;

    fn reply(queries: &Queries, message: &Self::Request, asked: Asked<'_>) -> impl Future<Output = Result<Self::Reply, Failure>> + Send;
}

/// A server of which the RPC `R` is answered with bytes as they lie in the cache, without any codec. Everything else, odd
/// requests for `R` too, goes to `S`: the generated server, or one that answers another RPC so.
pub(crate) struct AsBytes<S, R> {
    inner: S,
    queries: Queries,
    limit: usize,
    rpc: PhantomData<fn() -> R>,
}

impl<S, R> AsBytes<S, R> {
    /// `limit` is that of messages, both ways.
    pub fn new(inner: S, queries: Queries, limit: usize) -> Self {
        Self { inner, queries, limit, rpc: PhantomData }
    }
}

impl<S: Clone, R> Clone for AsBytes<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), queries: self.queries.clone(), limit: self.limit, rpc: PhantomData }
    }
}

impl<S: NamedService, R> NamedService for AsBytes<S, R> {
    const NAME: &'static str = S::NAME;
}

impl<S, R> Service<http::Request<Body>> for AsBytes<S, R>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    R: ByteRpc,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != R::PATH {
            return Box::pin(self.inner.call(request));
        }
        let (queries, limit, mut inner) = (self.queries.clone(), self.limit, self.inner.clone());
        Box::pin(async move {
            let Some(message) = take_unary(&mut request, limit).await else { return inner.call(request).await };
            Ok(match R::reply(&queries, &message, Asked::from(&request)).await {
                Ok(reply) => reply.response(limit),
                Err(failure) => Status::from(failure).into_http(),
            })
        })
    }
}
