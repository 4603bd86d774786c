//! Suites over the genuine Qwen2.5 tokenizer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "test code may panic and print"
)]

mod files;
mod kinds;
mod length;
mod load;
mod media;
mod oracle;
mod parity;
mod templates;
