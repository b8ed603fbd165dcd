//! Medians, ranges and intervals.

/// Some measurements of one thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

impl Samples {
    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        match self.0.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => self.0[n / 2],
            n => f64::midpoint(self.0[n / 2 - 1], self.0[n / 2]),
        }
    }

    /// The smallest one.
    pub(crate) fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    /// The largest one.
    pub(crate) fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// The interval that holds the mean with 95 % certainty (Student's t).
    pub(crate) fn interval(&self) -> (f64, f64) {
        /// Two-sided 95 % quantiles for 1, 2, 3, ... degrees of freedom.
        const T: [f64; 20] = [
            12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
            2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
        ];
        let n = self.0.len() as f64;
        let mean = self.0.iter().sum::<f64>() / n;
        let Some(degrees) = self.0.len().checked_sub(2) else { return (f64::NAN, f64::NAN) };
        let variance = self.0.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let half = T[degrees.min(T.len() - 1)] * (variance / n).sqrt();
        (mean - half, mean + half)
    }

    /// Median and range, in this many decimals.
    pub(crate) fn show(&self, decimals: usize) -> String {
        format!(
            "{:.decimals$} ({:.decimals$} to {:.decimals$})",
            self.median(),
            self.min(),
            self.max()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_interval() {
        let samples: Samples = [3.0, 1.0, 2.0].into_iter().collect();
        assert_eq!(samples.show(1), "2.0 (1.0 to 3.0)");
        let (low, high) = samples.interval();
        assert!((low - -0.484).abs() < 0.01 && (high - 4.484).abs() < 0.01);
        let even: Samples = [1.0, 2.0].into_iter().collect();
        assert!((even.median() - 1.5).abs() < 1e-9);
    }
}
