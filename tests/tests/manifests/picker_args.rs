//! The picker's command line, read by the picker's own parser.

use clap::Parser;
use warmroute::cli::{Cli, ServeOptions};

use crate::objects::Objects;

/// Every argument is one that the picker takes and doesn't refuse, none is there twice, and they name one source of
/// endpoints.
pub(crate) fn are_taken(what: &str, objects: &Objects) {
    let arguments = objects.picker_args();
    let options = options(what, &arguments);
    options.peer.check().unwrap_or_else(|error| panic!("{what}: {error}"));
    for tls in [options.tls.ext_proc(), options.tls.metrics()] {
        tls.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    pool_name(what, objects);
    for (index, argument) in arguments.iter().enumerate() {
        let name = argument.split('=').next().unwrap();
        let again = arguments[index + 1..].iter().find(|other| other.split('=').next() == Some(name));
        assert!(again.is_none() || name == "--inference-objective", "{what}: {name} twice");
    }
}

/// The pool's name as the picker itself has it, in a pod of its Deployment.
pub(crate) fn pool_name(what: &str, objects: &Objects) -> String {
    let deployment = objects.picker()["metadata"]["name"].as_str().unwrap();
    let variable = |name: &str| match name {
        "NAMESPACE" => Some("inference".to_owned()),
        "POD_NAME" => Some(format!("{deployment}-7d9f8b6c5-x2x9z")),
        _ => None,
    };
    let options = options(what, &objects.picker_args());
    let source = options.kubernetes.source(&options.endpoints, None, variable);
    let source = source.unwrap_or_else(|error| panic!("{what}: {error}"));
    source.unwrap_or_else(|| panic!("{what}: no endpoints")).name
}

fn options(what: &str, arguments: &[&str]) -> ServeOptions {
    let cli = Cli::try_parse_from(std::iter::once("warmroute").chain(arguments.iter().copied()));
    cli.unwrap_or_else(|error| panic!("{what}: {error}")).serve
}
