//! The picker as it ships: Warmroute with the built-in plugins.

fn main() -> std::process::ExitCode {
    warmroute::Warmroute::new().main()
}
