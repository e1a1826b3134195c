use std::process::ExitCode;

use souk_runtime::ServiceKind;

fn main() -> ExitCode {
    souk_runtime::main_of(ServiceKind::Projector, souk_projector::run)
}
