//! Warmroute with the plugins of acme.

fn main() -> std::process::ExitCode {
    warmroute::Warmroute::new().plugin(acme::register).main()
}
