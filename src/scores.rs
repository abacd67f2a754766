//! Class scores `[C][...]` to probabilities and labels.

/// Softmax over the channels of logits `[C][...]`, in place: probabilities.
pub fn softmax(logits: &mut [f32], channels: u32) {
    use rayon::prelude::*;
    let n = logits.len() / channels.max(1) as usize;
    let high: Vec<f32> =
        (0..n).into_par_iter().map(|v| (0..channels as usize).map(|c| logits[c * n + v]).fold(f32::NEG_INFINITY, f32::max)).collect();
    let mut total = vec![0.0f32; n];
    for plane in logits.chunks_exact_mut(n.max(1)) {
        plane.par_iter_mut().zip(&high).zip(&mut total).for_each(|((x, h), t)| {
            *x = (*x - h).exp();
            *t += *x;
        });
    }
    for plane in logits.chunks_exact_mut(n.max(1)) {
        plane.par_iter_mut().zip(&total).for_each(|(x, t)| *x /= t);
    }
}

/// Label of the highest of the channels `[C][...]`; the first of equals wins.
#[must_use]
pub fn argmax(values: &[f32], channels: u32) -> Vec<u16> {
    use rayon::prelude::*;
    let n = values.len() / channels.max(1) as usize;
    (0..n)
        .into_par_iter()
        .map(|v| {
            let best = (0..channels as usize).fold(0, |best, c| if values[c * n + v] > values[best * n + v] { c } else { best });
            u16::try_from(best).unwrap_or(u16::MAX)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_one_and_keeps_the_argmax() {
        let mut x = vec![1.0, -100.0, 3.0, 200.0, 2.0, 50.0];
        let before = argmax(&x, 3);
        softmax(&mut x, 3);
        assert_eq!(argmax(&x, 3), before);
        for v in 0..2 {
            let sum: f32 = (0..3).map(|c| x[c * 2 + v]).sum();
            assert!((sum - 1.0).abs() < 1e-6);
        }
        assert_eq!(argmax(&[1.0, 1.0], 2), [0]);
    }
}
