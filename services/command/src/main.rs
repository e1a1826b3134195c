use std::process::ExitCode;

use souk_runtime::ServiceKind;

fn main() -> ExitCode {
    souk_runtime::main_of(ServiceKind::Command, souk_command::run)
}
