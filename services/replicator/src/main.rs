use std::process::ExitCode;

use souk_runtime::{ServiceKind, main_of};

fn main() -> ExitCode {
    main_of(ServiceKind::Replicator, souk_replicator::run)
}
