//! Methods of Python's strings and `%` formatting, where templates use them and the engine lacks them.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Rest, Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use crate::python::{is_space, str_of};

/// Padding may make a string this long, in characters.
const MAX_WIDTH: usize = 100_000;

/// Handles a method that the template engine doesn't know.
pub(crate) fn unknown_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, method, args)
    {
        return result;
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let has_no_characters = args.first().is_none_or(Value::is_none);
    Some(match method {
        "strip" if has_no_characters => Ok(Value::from(text.trim_matches(is_space))),
        "lstrip" if has_no_characters => Ok(Value::from(text.trim_start_matches(is_space))),
        "rstrip" if has_no_characters => Ok(Value::from(text.trim_end_matches(is_space))),
        "isspace" => Ok(Value::from(!text.is_empty() && text.chars().all(is_space))),
        "split" if args.is_empty() => {
            Ok(text.split(is_space).filter(|word| !word.is_empty()).map(Value::from).collect())
        }
        "rsplit" => rsplit(text, args),
        "partition" => from_args(args).map(|(separator,): (&str,)| {
            let (before, found, after) = match text.split_once(separator) {
                Some((before, after)) => (before, separator, after),
                None => (text, "", ""),
            };
            Value::from(Tuple::from([before, found, after].map(Value::from)))
        }),
        "rpartition" => from_args(args).map(|(separator,): (&str,)| {
            let (before, found, after) = match text.rsplit_once(separator) {
                Some((before, after)) => (before, separator, after),
                None => ("", "", text),
            };
            Value::from(Tuple::from([before, found, after].map(Value::from)))
        }),
        "removeprefix" => {
            from_args(args).map(|(prefix,): (&str,)| Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            from_args(args).map(|(suffix,): (&str,)| Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "ljust" => pad(text, args, |missing| (0, missing)),
        "rjust" => pad(text, args, |missing| (missing, 0)),
        "zfill" => zfill(text, args),
        _ => return None,
    })
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let Some(separator) = separator.filter(|separator| !separator.is_empty()) else {
        return Err(Error::from(ErrorKind::UnknownMethod));
    };
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<Value> = text.rsplitn(most.saturating_add(1), separator).map(Value::from).collect();
    parts.reverse();
    Ok(Value::from(parts))
}

fn pad(text: &str, args: &[Value], sides: fn(usize) -> (usize, usize)) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let missing = width.min(MAX_WIDTH).saturating_sub(text.chars().count());
    let (left, right) = sides(missing);
    let fill = fill.unwrap_or(" ");
    Ok(Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(right))))
}

fn zfill(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (width,): (usize,) = from_args(args)?;
    let missing = "0".repeat(width.min(MAX_WIDTH).saturating_sub(text.chars().count()));
    let digits = text.trim_start_matches(['+', '-']);
    let sign = &text[..text.len() - digits.len()];
    Ok(Value::from(if sign.len() <= 1 {
        format!("{sign}{missing}{digits}")
    } else {
        format!("{missing}{text}")
    }))
}

/// `text % operand`, written as a filter by [`crate::template_source`].
pub(crate) fn percent_format(text: &str, operands: Rest<Value>) -> Result<String, Error> {
    match operands.first() {
        Some(tuple) if tuple.is_tuple() => {
            let values: Vec<Value> = tuple.try_iter()?.collect();
            format(FormatStyle::Printf, text, &values)
        }
        _ => format(FormatStyle::Printf, text, &operands),
    }
}

/// The `trim` filter, with Python's set of white space; other values than text are printed first.
pub(crate) fn trim(value: &Value, characters: Option<&str>) -> String {
    let text = str_of(value);
    match characters {
        Some(characters) => text.trim_matches(|character| characters.contains(character)).to_owned(),
        None => text.trim_matches(is_space).to_owned(),
    }
}
