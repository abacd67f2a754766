//! Colours for labels and for values between 0 and 1.

/// Red, green, blue.
pub(super) type Rgb = [u8; 3];

/// Viridis at even steps: lightness rises evenly, and it reads the same with a colour vision deficiency.
const VIRIDIS: [Rgb; 9] = [
    [68, 1, 84],
    [71, 44, 122],
    [59, 81, 139],
    [44, 113, 142],
    [33, 144, 141],
    [39, 173, 129],
    [92, 200, 99],
    [170, 220, 50],
    [253, 231, 37],
];

/// The colour of a label above 0.
pub(super) fn of_label(label: u16) -> Rgb {
    crate::volume::legend::colour(label)
}

/// The colour of a value from 0 to 1, viridis-like.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the position is clamped to the table")]
pub(super) fn of_value(value: f32) -> Rgb {
    let position = value.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f32;
    let below = (position as usize).min(VIRIDIS.len() - 2);
    mix(VIRIDIS[below], VIRIDIS[below + 1], position - below as f32)
}

/// The grey of a value from 0 to 1.
pub(super) fn grey(value: f32) -> Rgb {
    [byte(value * 255.0); 3]
}

/// `a` with `share` of it replaced by `b`.
pub(super) fn mix(a: Rgb, b: Rgb, share: f32) -> Rgb {
    [0, 1, 2].map(|i| {
        let (a, b) = (f32::from(a[i]), f32::from(b[i]));
        byte(a + (b - a) * share)
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
fn byte(x: f32) -> u8 {
    x.round().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_meets_its_ends_and_grows_lighter() {
        assert_eq!(of_value(0.0), VIRIDIS[0]);
        assert_eq!(of_value(1.0), VIRIDIS[8]);
        assert_eq!(of_value(f32::NAN), of_value(f32::NAN));
        let lightness = |v: f32| {
            let [r, g, b] = of_value(v).map(f32::from);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        assert!((0..100u8).all(|i| lightness(f32::from(i) / 100.0) < lightness(f32::from(i + 1) / 100.0)));
    }
}
