//! Architecture and config of a checkpoint without a card, from the names and shapes of its tensors.
//!
//! What shapes do not tell and the reference does not fix (heads of fused projections, extents of crops) is asked for, never
//! guessed: a wrong number would give a wrong result and no error.

mod conv;
mod dialect;
mod monai;
mod token;

use std::collections::HashMap;

use serde_json::{Map, Value};

pub(super) use dialect::{Dialect, translate};

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

    /// What of a norm the tensors leave open: `told` where they have parameters.
    fn asks_norm(self, parameters: bool, default: &str) -> Self {
        let what = if parameters {
            "\"instance\", where it is instance norm with parameters as its tensors may be"
        } else {
            "\"instance_plain\", where it is instance norm without parameters, or \"none\""
        };
        self.asks("norm", format!("{what}; {default}; no other norm without running statistics is supported"))
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

/// Shapes by name, and what else a file tells of its tensors.
pub(super) struct Shapes<'a> {
    shapes: HashMap<&'a str, &'a [usize]>,
    /// Places in the order of the network's modules, where the file keeps it.
    places: Option<HashMap<&'a str, usize>>,
    dialect: Dialect,
}

/// Most of anything that is counted.
const MOST: usize = 256;

impl<'a> Shapes<'a> {
    /// Of tensors in the order of the file. One by name is not that of modules.
    pub(super) fn new(tensors: impl Iterator<Item = (&'a str, &'a [usize])>, dialect: Dialect, ordered: bool) -> Self {
        let (mut shapes, mut places) = (HashMap::new(), HashMap::new());
        for (place, (name, shape)) in tensors.enumerate() {
            shapes.insert(name, shape);
            places.insert(name, place);
        }
        Self { shapes, places: Some(places).filter(|_| ordered), dialect }
    }

    /// Whether a tensor comes before another, if the file tells it.
    fn before(&self, first: &str, second: &str) -> Option<bool> {
        let places = self.places.as_ref()?;
        Some(places.get(first)? < places.get(second)?)
    }

    fn has(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }

    fn dim(&self, name: &str, axis: usize) -> Option<u32> {
        self.shapes.get(name)?.get(axis).and_then(|&n| u32::try_from(n).ok())
    }

    /// The extents of a kernel, or of what else has so many axes behind the first two.
    fn kernel(&self, name: &str) -> Option<Vec<u32>> {
        self.shapes.get(name)?.get(2..)?.iter().map(|&n| u32::try_from(n).ok()).collect()
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

const RULES: [Rule; 20] = [
    conv::u_transformer,
    conv::plain_conv_unet,
    conv::residual_encoder_unet,
    conv::unet2d,
    conv::attention_unet2d,
    conv::attention_unet,
    conv::vnet,
    conv::monai_unet,
    monai::basic_unet,
    monai::seg_res_net,
    monai::seg_res_net_ds,
    monai::swin_unetr,
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
pub(super) fn guess(shapes: &Shapes<'_>, architecture: Option<&str>) -> Option<Guess> {
    RULES.iter().filter_map(|rule| rule(shapes)).find(|guess| architecture.is_none_or(|name| name == guess.architecture))
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
        let shapes = |list: &'static [(&'static str, &'static [usize])]| Shapes::new(list.iter().copied(), Dialect::Own, true);
        assert!(guess(&shapes(&[]), None).is_none());
        assert!(guess(&shapes(&[("a.weight", &[1, 2])]), None).is_none());
    }
}
