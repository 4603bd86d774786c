//! How many times faster than `tokenizers` 0.23 the encoder is on text it has not seen.
//!
//! `cargo run --profile quick -p warmroute-tokenize --example encode_speed -- TOKENIZER_DIR CORPUS_DIR`
//!
//! One thread. Every measurement encodes a text once, with a tokenizer loaded for it that has only seen the
//! other texts: it is in working order, but knows nothing of this one. The fastest round of each counts, since
//! other work on the machine interrupts the longer one more often.
#![allow(clippy::print_stdout, reason = "prints its result")]

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use tokenizers_0_23::Tokenizer;
use warmroute_tokenize::{Encoder, FastEncoder};

const ROUNDS: usize = 9;

fn least(seconds: &[f64]) -> f64 {
    seconds.iter().copied().fold(f64::INFINITY, f64::min)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(tokenizer), Some(corpus)) = (arguments.next(), arguments.next()) else {
        return Err("usage: encode_speed TOKENIZER_DIR CORPUS_DIR".into());
    };
    let path = tokenizer.join("tokenizer.json");
    let (mut fast_total, mut reference_total, mut bytes_total) = (0.0, 0.0, 0);
    let names = ["prose.txt", "code.txt", "chinese.txt"];
    let texts = names.map(|name| std::fs::read_to_string(corpus.join(name)));
    let texts: Vec<String> = texts.into_iter().collect::<Result<_, _>>()?;
    for (name, text) in names.iter().zip(&texts) {
        let others = || texts.iter().filter(|other| *other != text);
        let (mut fast_seconds, mut reference_seconds) = (Vec::new(), Vec::new());
        let mut is_same = true;
        let mut tokens = 0;
        for _ in 0..ROUNDS {
            let fast = FastEncoder::load(&path)?;
            let mut ids = Vec::with_capacity(text.len());
            for other in others() {
                fast.encode(other, false, &mut ids)?;
            }
            ids.clear();
            let start = Instant::now();
            fast.encode(text, false, &mut ids)?;
            fast_seconds.push(start.elapsed().as_secs_f64());
            let reference = Tokenizer::from_file(&path).map_err(|error| error.to_string())?;
            for other in others() {
                reference.encode_fast(other.as_str(), false).map_err(|error| error.to_string())?;
            }
            let start = Instant::now();
            let encoding = reference.encode_fast(text.as_str(), false).map_err(|error| error.to_string())?;
            reference_seconds.push(start.elapsed().as_secs_f64());
            is_same &= encoding.get_ids() == ids;
            tokens = ids.len();
        }
        let (fast_seconds, reference_seconds) = (least(&fast_seconds), least(&reference_seconds));
        println!(
            "{name:12} {:7} bytes {tokens:6} tokens  fast {:6.1} MB/s  reference {:5.2} MB/s  ratio {:4.1}  same ids: {is_same}",
            text.len(),
            text.len() as f64 / 1e6 / fast_seconds,
            text.len() as f64 / 1e6 / reference_seconds,
            reference_seconds / fast_seconds,
        );
        fast_total += fast_seconds;
        reference_total += reference_seconds;
        bytes_total += text.len();
    }
    println!("together     {bytes_total} bytes, ratio {:.1}", reference_total / fast_total);
    Ok(())
}
