//! Architecture and config of a checkpoint without a card, from the names and shapes of its tensors.
//!
//! What shapes do not tell and the reference does not fix (heads of fused projections, extents of crops) is asked for, never
//! guessed: a wrong number would give a wrong result and no error.

mod conv;
mod dialect;
mod token;

use std::collections::HashMap;

use serde_json::{Map, Value};

pub(super) use dialect::translate;

/// What names and shapes tell.
#[derive(Clone, Debug)]
pub(super) struct Guess {
    /// As cards name it.
    pub architecture: &'static str,
    /// What is told of the config.
    pub config: Map<String, Value>,
    /// Keys of the config that are not told, and what they mean.
    pub untold: Vec<(&'static str, String)>,
}

impl Guess {
    /// Of a config that is a JSON object.
    fn new(architecture: &'static str, config: Value) -> Self {
        let config = if let Value::Object(config) = config { config } else { Map::new() };
        Self { architecture, config, untold: Vec::new() }
    }

    fn asks(mut self, key: &'static str, what: impl Into<String>) -> Self {
        self.untold.push((key, what.into()));
        self
    }

    fn asks_heads(self, width: u32) -> Self {
        self.asks("heads", format!("attention heads, a divisor of {width}"))
    }

    fn asks_crop(self) -> Self {
        self.asks("crop", "the extent D, H, W that it was trained on, as [d, h, w]")
    }

    /// A number of the config, or a question where shapes do not tell it.
    fn or_asks(mut self, key: &'static str, value: Option<u32>, what: &str) -> Self {
        match value {
            Some(value) => {
                self.config.insert(key.into(), value.into());
                self
            }
            None => self.asks(key, what),
        }
    }
}

/// Shapes by name.
struct Shapes<'a>(HashMap<&'a str, &'a [usize]>);

/// Most of anything that is counted.
const MOST: usize = 256;

impl Shapes<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn dim(&self, name: &str, axis: usize) -> Option<u32> {
        self.0.get(name)?.get(axis).and_then(|&n| u32::try_from(n).ok())
    }

    /// The extents of a kernel, or of what else has so many axes behind the first two.
    fn kernel(&self, name: &str) -> Option<Vec<u32>> {
        self.0.get(name)?.get(2..)?.iter().map(|&n| u32::try_from(n).ok()).collect()
    }

    /// How many of the names for 0, 1, 2.. there are without a gap.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..MOST).take_while(|&i| self.has(&name(i))).count()
    }

    /// A number of each of so many modules.
    fn each(&self, n: usize, value: impl Fn(usize) -> Option<u32>) -> Option<Vec<u32>> {
        (0..n).map(value).collect()
    }

    /// How many of each of so many modules.
    fn counts(&self, n: usize, name: impl Fn(usize, usize) -> String) -> Vec<usize> {
        (0..n).map(|i| self.count(|k| name(i, k))).collect()
    }
}

/// What recognises an architecture by the tensors that it alone has.
type Rule = fn(&Shapes<'_>) -> Option<Guess>;

const RULES: [Rule; 16] = [
    conv::u_transformer,
    conv::plain_conv_unet,
    conv::residual_encoder_unet,
    conv::unet2d,
    conv::attention_unet2d,
    conv::attention_unet,
    conv::vnet,
    conv::monai_unet,
    token::nnformer,
    token::glam_nnformer,
    token::fine,
    token::unetr,
    token::cotr,
    token::swin_unet,
    token::glam_swin_unet,
    token::transunet,
];

/// What names and shapes tell; only of one architecture, if it is given.
pub(super) fn guess<'a>(shapes: impl Iterator<Item = (&'a str, &'a [usize])>, architecture: Option<&str>) -> Option<Guess> {
    let shapes = Shapes(shapes.collect());
    RULES.iter().filter_map(|rule| rule(&shapes)).find(|guess| architecture.is_none_or(|name| name == guess.architecture))
}

/// The number whose square, or whose cube, it is.
fn root(n: u32, power: u32) -> Option<u32> {
    (1..=4096u32).find(|r| r.checked_pow(power).is_none_or(|p| p >= n)).filter(|r| r.checked_pow(power) == Some(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_exact_or_none() {
        assert_eq!([root(49, 2), root(343, 3), root(50, 2), root(0, 2)], [Some(7), Some(7), None, None]);
        assert_eq!(root(u32::MAX, 2), None);
    }

    #[test]
    fn of_no_tensors_nothing_is_told() {
        assert!(guess(std::iter::empty(), None).is_none());
        assert!(guess([("a.weight", &[1usize, 2][..])].into_iter(), None).is_none());
    }
}
