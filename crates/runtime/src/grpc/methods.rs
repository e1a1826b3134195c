use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics::{Counter, Histogram, counter, histogram};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;

/// Number of gRPC status codes, OK among them.
const CODES: usize = 17;

/// What the server knows of each method, found by its path.
pub(super) struct Methods {
    by_path: HashMap<String, Arc<Method>>,
    unknown: Arc<Method>,
}

pub(super) struct Method {
    pub service: String,
    pub name: String,
    /// Client or server streams: not bound by the deadline of unary calls.
    pub streaming: bool,
    /// Health and reflection: never shed, so that an overloaded process is not taken for a dead one.
    pub vital: bool,
    /// Metric handles by status code, made when a code first occurs.
    outcomes: [OnceLock<(Counter, Histogram)>; CODES],
}

impl Methods {
    /// All methods of our contracts, of health and of reflection. Any other path counts as one "unknown" method, so
    /// that callers cannot make up metric labels.
    pub fn from_descriptors() -> anyhow::Result<Self> {
        let mut by_path = HashMap::new();
        let sets = [
            (souk_proto::DESCRIPTORS, false),
            (tonic_health::pb::FILE_DESCRIPTOR_SET, true),
            (tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET, true),
            (tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET, true),
        ];
        for (bytes, vital) in sets {
            for file in FileDescriptorSet::decode(bytes)?.file {
                for service in &file.service {
                    let service_name = format!("{}.{}", file.package(), service.name());
                    for method in &service.method {
                        let streaming = method.client_streaming() || method.server_streaming();
                        let path = format!("/{service_name}/{}", method.name());
                        by_path.insert(path, Arc::new(Method::new(&service_name, method.name(), streaming, vital)));
                    }
                }
            }
        }
        Ok(Self { by_path, unknown: Arc::new(Method::new("unknown", "unknown", false, false)) })
    }

    pub fn of(&self, path: &str) -> &Arc<Method> {
        self.by_path.get(path).unwrap_or(&self.unknown)
    }
}

impl Method {
    fn new(service: &str, name: &str, streaming: bool, vital: bool) -> Self {
        Self { service: service.to_owned(), name: name.to_owned(), streaming, vital, outcomes: [const { OnceLock::new() }; CODES] }
    }

    /// Counts one finished call.
    pub fn record(&self, code: Code, took: Duration) {
        let (calls, seconds) = self.outcomes[code as usize % CODES].get_or_init(|| {
            let labels =
                [("grpc_service", self.service.clone()), ("grpc_method", self.name.clone()), ("grpc_code", code_name(code).to_owned())];
            (counter!("souk_rpc_requests_total", &labels), histogram!("souk_rpc_seconds", &labels))
        });
        calls.increment(1);
        seconds.record(took.as_secs_f64());
    }
}

/// Name of a status code as the gRPC specification writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_by_their_path() {
        let methods = Methods::from_descriptors().unwrap();
        let place = methods.of("/souk.orders.v1.CommandService/PlaceOrder");
        assert_eq!((place.service.as_str(), place.name.as_str(), place.streaming), ("souk.orders.v1.CommandService", "PlaceOrder", false));
        assert!(methods.of("/souk.orders.v1.QueryService/WatchOrder").streaming);
        assert!(methods.of("/souk.cart.v1.QueryService/WatchCart").streaming);
        assert!(methods.of("/grpc.health.v1.Health/Check").vital);
        assert!(methods.of("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo").vital);
        assert_eq!(methods.of("/made/up").name, "unknown");
    }
}
