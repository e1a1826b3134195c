use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value,
    resource::v1::Resource,
    trace::v1::Span,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Request, Response, Status, transport::Server};

/// An OTLP receiver that keeps every span; gone when dropped.
#[derive(Debug)]
pub struct TraceReceiver {
    endpoint: String,
    spans: Spans,
    serving: JoinHandle<()>,
}

/// A span, and which service recorded it.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub service: String,
    pub span: Span,
}

#[derive(Debug, Clone, Default)]
struct Spans(Arc<Mutex<Vec<Recorded>>>);

impl TraceReceiver {
    /// # Errors
    /// When there is no port to listen on.
    #[expect(clippy::disallowed_methods, reason = "a few exporters of one test need no limits")]
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let spans = Spans::default();
        let server = Server::builder().add_service(TraceServiceServer::new(spans.clone()));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tokio::spawn(async move { server.serve_with_incoming(incoming).await.expect("the receiver serves") });
        Ok(Self { endpoint, spans, serving })
    }

    /// For `telemetry.otlp_endpoint`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What has arrived and belongs to a trace, as its own span or by a link.
    pub fn of_trace(&self, id: u128) -> Vec<Recorded> {
        let id = id.to_be_bytes();
        let spans = self.spans.0.lock().unwrap_or_else(PoisonError::into_inner);
        spans.iter().filter(|recorded| recorded.joins(id)).cloned().collect()
    }
}

impl Recorded {
    fn joins(&self, trace: [u8; 16]) -> bool {
        self.span.trace_id == trace || self.span.links.iter().any(|link| link.trace_id == trace)
    }

    /// Whether it says of itself that it follows from that span, as its child or by a link.
    pub fn follows(&self, span: &[u8]) -> bool {
        self.span.parent_span_id == span || self.span.links.iter().any(|link| link.span_id == span)
    }
}

impl Drop for TraceReceiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.into_inner().resource_spans {
            let service = service_name(resource.resource.as_ref());
            let new = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(new.map(|span| Recorded { service: service.clone(), span }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn service_name(resource: Option<&Resource>) -> String {
    let attribute = resource.and_then(|resource| resource.attributes.iter().find(|attribute| attribute.key == "service.name"));
    match attribute.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(any_value::Value::StringValue(name)) => name.clone(),
        _ => String::new(),
    }
}
