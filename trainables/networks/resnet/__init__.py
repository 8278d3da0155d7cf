"""Residual and dense bodies for CIFAR and ImageNet, which several families build on."""
