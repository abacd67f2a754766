//! The part of Python that a config's values are written in: literals, lists, tuples, references, `len`, sums and products.

use serde_json::{Number, Value};

/// Deepest nesting.
const DEEPEST: u32 = 32;

/// The value of an expression; `None` if it is more Python than that.
pub(super) fn evaluate(text: &str, resolve: &mut dyn FnMut(&str) -> Option<Value>) -> Option<Value> {
    let mut parser = Parser { rest: text, resolve, depth: 0 };
    let value = parser.sum()?;
    parser.rest.trim_start().is_empty().then_some(value)
}

/// The characters of an id: names, numbers and what separates them.
pub(super) fn is_id(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | ':' | '#')
}

struct Parser<'a, 'r> {
    rest: &'a str,
    resolve: &'r mut dyn FnMut(&str) -> Option<Value>,
    depth: u32,
}

impl<'a> Parser<'a, '_> {
    /// Takes a sign if it comes next.
    fn take(&mut self, sign: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Takes characters as long as they fit.
    fn while_fits(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !fits(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn sum(&mut self) -> Option<Value> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        let mut value = self.product()?;
        loop {
            if self.take("+") {
                value = add(value, self.product()?)?;
            } else if self.take("-") {
                value = arithmetic(&value, &self.product()?, i64::checked_sub, |a, b| a - b)?;
            } else {
                self.depth -= 1;
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<Value> {
        let mut value = self.factor()?;
        loop {
            if self.take("//") {
                let (a, b) = (value.as_i64()?, self.factor()?.as_i64()?);
                // Python rounds down; only positive divisors are of use here
                value = (b > 0).then(|| a.div_euclid(b))?.into();
            } else if self.take("*") {
                value = arithmetic(&value, &self.factor()?, i64::checked_mul, |a, b| a * b)?;
            } else {
                return Some(value);
            }
        }
    }

    fn factor(&mut self) -> Option<Value> {
        if self.take("-") {
            self.depth += 1;
            let value = (self.depth <= DEEPEST).then(|| self.factor())??;
            self.depth -= 1;
            return arithmetic(&0.into(), &value, i64::checked_sub, |a, b| a - b);
        }
        if self.take("@") {
            let id = self.while_fits(is_id);
            return (self.resolve)(id);
        }
        if self.take("[") {
            return self.items("]").map(|(items, _)| Value::Array(items));
        }
        if self.take("(") {
            let (mut items, commas) = self.items(")")?;
            return if commas == 0 { items.pop() } else { Some(Value::Array(items)) };
        }
        for quote in ["'", "\""] {
            if self.take(quote) {
                let (text, rest) = self.rest.split_once(quote)?;
                self.rest = rest;
                return (!text.contains('\\')).then(|| text.into());
            }
        }
        if self.rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return self.number();
        }
        match self.while_fits(|c| c.is_alphanumeric() || c == '_') {
            "None" => Some(Value::Null),
            "True" => Some(true.into()),
            "False" => Some(false.into()),
            "len" if self.take("(") => {
                let (mut items, _) = self.items(")")?;
                let length = match (items.pop()?, items.is_empty()) {
                    (Value::Array(a), true) => a.len(),
                    (Value::Object(o), true) => o.len(),
                    _ => return None,
                };
                Some(length.into())
            }
            _ => None,
        }
    }

    fn number(&mut self) -> Option<Value> {
        let mut text = self.while_fits(|c| c.is_ascii_digit() || c == '.').to_owned();
        if self.rest.starts_with(['e', 'E']) {
            text.push_str(self.while_fits(|c| c == 'e' || c == 'E'));
            text.push_str(self.while_fits(|c| c == '-' || c == '+'));
            text.push_str(self.while_fits(|c| c.is_ascii_digit()));
        }
        match text.parse::<i64>() {
            Ok(whole) => Some(whole.into()),
            Err(_) => Number::from_f64(text.parse().ok()?).map(Value::Number),
        }
    }

    /// Items up to a closing sign, and how many commas are between and after them.
    fn items(&mut self, close: &str) -> Option<(Vec<Value>, usize)> {
        let (mut items, mut commas) = (Vec::new(), 0);
        while !self.take(close) {
            items.push(self.sum()?);
            if self.take(",") {
                commas += 1;
            } else {
                return self.take(close).then_some((items, commas));
            }
        }
        // an empty tuple
        Some((items, commas.max(1)))
    }
}

fn add(a: Value, b: Value) -> Option<Value> {
    match (a, b) {
        (Value::Array(mut a), Value::Array(b)) => {
            a.extend(b);
            Some(Value::Array(a))
        }
        (Value::String(a), Value::String(b)) => Some(Value::String(a + &b)),
        (a, b) => arithmetic(&a, &b, i64::checked_add, |a, b| a + b),
    }
}

fn arithmetic(a: &Value, b: &Value, whole: fn(i64, i64) -> Option<i64>, real: fn(f64, f64) -> f64) -> Option<Value> {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => whole(a, b).map(Value::from),
        _ => Number::from_f64(real(a.as_f64()?, b.as_f64()?)).map(Value::Number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(text: &str) -> Option<Value> {
        evaluate(text, &mut |id| match id {
            "names" => Some(json!({"a": 1, "b": 2})),
            "list::0" => Some(json!(7)),
            "list" => Some(json!([7])),
            _ => None,
        })
    }

    #[test]
    fn literals_and_sums_have_values() {
        for (text, expected) in [
            ("1", json!(1)),
            (" -2 * 3 + 1 ", json!(-5)),
            ("---2", json!(-2)),
            ("len(@names) + 1", json!(3)),
            ("@list + [1, (2, 3,), None, True]", json!([7, 1, [2, 3], null, true])),
            ("@list::0 // 2", json!(3)),
            ("'a' + \"b\"", json!("ab")),
            ("(1.5 + 1)", json!(2.5)),
            ("1e-2", json!(0.01)),
            ("()", json!([])),
            ("(@list, )", json!([[7]])),
        ] {
            assert_eq!(value(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn more_python_has_none() {
        let (deep, signs) = ("(".repeat(100_000), "-".repeat(29_000) + "1");
        for text in [
            "",
            "torch.device('cpu')",
            "@unknown",
            "[1",
            "1 +",
            "'a",
            "len(1)",
            "lambda x: x",
            "1 2",
            "9223372036854775807 + 1",
            &deep,
            &signs,
        ] {
            assert_eq!(value(text), None, "{text:.40}");
        }
    }
}
