use http::{HeaderMap, Response};
use tonic::{Code, Status, body::Body};

use super::routes::no_such_method;
use crate::Failure;

/// The status code in headers or trailers, `None` when they carry none.
pub(super) fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// Gives errors that tonic made itself (unknown method, body that does not parse, message too large) a reason like all
/// others have, and the code of our table.
pub(super) fn explain(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    let failed = code(headers).is_some_and(|code| code != Code::Ok);
    if !failed || headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return response;
    }
    match Status::from_header_map(headers) {
        Some(status) => respond(reasoned(&status)),
        None => response,
    }
}

/// A failure as a response without a body.
pub(super) fn respond(failure: Failure) -> Response<Body> {
    Status::from(failure).into_http()
}

fn reasoned(status: &Status) -> Failure {
    let message = status.message();
    match status.code() {
        Code::Unimplemented if message.contains("ompress") => Failure::new(Code::Unimplemented, "COMPRESSION_NOT_SUPPORTED", message),
        Code::Unimplemented => no_such_method(),
        Code::OutOfRange if message.contains("message length too large") => Failure::invalid("REQUEST_TOO_LARGE", message),
        // tonic answers INTERNAL to bodies that are no message of this type: the caller's fault, not ours.
        Code::Internal if malformed(message) => Failure::invalid("MALFORMED_REQUEST", message),
        code => Failure::new(code, super::methods::code_name(code), message),
    }
}

fn malformed(message: &str) -> bool {
    ["failed to decode Protobuf message", "protocol error:", "Missing request message", "Unexpected EOF"]
        .iter()
        .any(|start| message.starts_with(start))
}
