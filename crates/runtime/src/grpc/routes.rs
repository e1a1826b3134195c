use std::convert::Infallible;

use http::{Request, Response};
use tonic::{
    Code,
    body::Body,
    codegen::{BoxFuture, Service},
    server::NamedService,
};

use super::explain::respond;
use crate::Failure;

/// The services of a server, found by the name in a call's path. tonic's own routes stand on a router for the web: it matches
/// patterns, keeps what they matched, and wraps request, reply and service once more: one instruction of 18 of a small call.
#[derive(Default)]
pub(super) struct Routes(Vec<(&'static str, Box<dyn Route>)>);

/// A service as the generated ones are: always ready, and its calls are boxed already.
trait Route: Send + Sync {
    fn call(&self, request: Request<Body>) -> BoxFuture<Response<Body>, Infallible>;
}

impl<S> Route for S
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = BoxFuture<Response<Body>, Infallible>>,
    S: Clone + Send + Sync,
{
    fn call(&self, request: Request<Body>) -> BoxFuture<Response<Body>, Infallible> {
        Service::call(&mut self.clone(), request)
    }
}

impl Routes {
    pub fn add<S>(&mut self, service: S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = BoxFuture<Response<Body>, Infallible>>,
        S: NamedService + Clone + Send + Sync + 'static,
    {
        self.0.push((S::NAME, Box::new(service)));
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|(name, _)| *name).collect()
    }

    /// Calls the service that the path names.
    pub fn call(&self, request: Request<Body>) -> BoxFuture<Response<Body>, Infallible> {
        let name = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/')).map(|(name, _)| name);
        // A handful: comparing is faster than hashing.
        match self.0.iter().find(|(known, _)| Some(*known) == name) {
            Some((_, service)) => service.call(request),
            None => Box::pin(async { Ok(respond(no_such_method())) }),
        }
    }
}

pub(super) fn no_such_method() -> Failure {
    Failure::new(Code::Unimplemented, "METHOD_NOT_FOUND", "no such method on this port")
}
