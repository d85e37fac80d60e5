//! `tombolo wireguard` without the rest of `tombolo`, so that tests can start it as a process of its own.

fn main() -> std::process::ExitCode {
    tombolo_tunnel::userspace::run(std::env::args_os().skip(1))
}
