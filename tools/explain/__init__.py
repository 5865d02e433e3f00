"""What a trained model looks at: occlusion for windows, permutation importance for tables."""
